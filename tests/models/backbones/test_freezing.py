"""Stages by name, and what is frozen stays: weights, statistics, modes, also in copies."""

import copy

import pytest
import torch
from small_vit import small_vit

from hapicl.common.errors import UserError
from hapicl.engine.batchnorm import split_batch_norm
from hapicl.models.backbones.base import Backbone
from hapicl.models.backbones.build import build_backbone


@pytest.fixture
def resnet() -> Backbone:
    return build_backbone("resnet18", image_size=32)


@pytest.mark.parametrize("make", [lambda: build_backbone("resnet18", image_size=32), small_vit])
def test_every_parameter_belongs_to_one_stage(make) -> None:  # type: ignore[no-untyped-def]
    backbone = make()
    found = [
        id(value)
        for parts in backbone.stages().values()
        for part in parts
        for value in ([part] if isinstance(part, torch.nn.Parameter) else part.parameters())
    ]
    assert sorted(found) == sorted(id(value) for value in backbone.parameters())


def test_stages_go_from_the_image_on(resnet: Backbone) -> None:
    assert list(resnet.stages()) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert list(small_vit().stages()) == ["stem", "block1", "block2", "norm"]


def test_frozen_stages_keep_weights_and_statistics_while_the_rest_trains(resnet: Backbone) -> None:
    resnet.freeze(["stem", "layer1"])
    network = split_batch_norm(torch.nn.Sequential(resnet), 2).train()  # replaces the BatchNorms
    before = {name: value.clone() for name, value in resnet.export_state().items()}
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], 0.1)
    for _ in range(2):
        network(torch.randn(4, 3, 32, 32))["layer4"].square().mean().backward()
        optimizer.step()
    after = resnet.export_state()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("conv1", "bn1", "layer1")) for name in moved)
    assert {"layer2.0.conv1.weight", "layer2.0.bn1.running_mean", "layer4.1.bn2.weight"} <= moved


def test_frozen_statistics_normalise_while_all_weights_train(resnet: Backbone) -> None:
    resnet.freeze([], statistics=True)
    images = torch.randn(4, 3, 32, 32)
    trained = resnet.train()(images)["layer4"]
    torch.testing.assert_close(trained, resnet.eval()(images)["layer4"])
    assert all(value.requires_grad for value in resnet.parameters())


def test_a_copy_stays_frozen_too(resnet: Backbone) -> None:
    resnet.freeze(["stem"], statistics=True)
    copied = copy.deepcopy(resnet).train()
    assert not copied.trunk.bn1.training
    assert not copied.trunk.layer4[0].bn1.training
    copied.trunk.bn1.running_mean += 1
    assert torch.equal(resnet.trunk.bn1.running_mean, torch.zeros(64))


def test_the_tokens_before_a_frozen_block_keep_their_parameters() -> None:
    vit = small_vit()
    vit.freeze(["stem", "block1"])
    trained = {name.split(".")[0] for name, value in vit.trunk.named_parameters() if value.requires_grad}
    assert trained == {"blocks", "norm"}
    assert not vit.trunk.cls_token.requires_grad


def test_mistakes_are_named(resnet: Backbone) -> None:
    with pytest.raises(UserError, match=r"no stage 'layer9'.*it has stem, layer1"):
        resnet.freeze(["layer9"])
    with pytest.raises(UserError, match="leaves nothing of the backbone to train"):
        resnet.freeze(["stem", "layer1", "layer2", "layer3", "layer4"])

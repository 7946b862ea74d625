"""MoCo v3: the loss against a loop, temperatures by backbone, frozen parts, EMA ends."""

import math

import pytest
import torch
from small_vit import batch_for, small_method, train

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.moco_v3 import MoCoV3, MoCoV3Config


def test_the_loss_against_a_loop() -> None:
    method = small_method("moco_v3").double()
    batch = batch_for(method, images=5).map_tensors(
        lambda value: value.double() if value.is_floating_point() else value
    )
    output = method(batch)
    queries = [method.query(method.backbone(view)) for view in batch.views]
    keys = [method.key(method.key_backbone(view)) for view in batch.views]
    total = 0.0
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        for row in range(5):
            scores = [torch.cosine_similarity(query[row], other, dim=0) / 0.2 for other in key]
            cross = torch.logsumexp(torch.stack(scores), 0) - scores[row]
            total = total + 2 * 0.2 * cross / 5
    torch.testing.assert_close(output.loss, total)
    assert output.loss_terms["instance"].item() == pytest.approx(total.item() / (4 * 0.2))
    assert output.references["instance"] == pytest.approx(math.log(5))


def test_no_gradient_reaches_keys_or_patch_embedding_and_all_else_has_one() -> None:
    method = small_method("moco_v3")
    method(batch_for(method)).loss.backward()
    for name, value in method.named_parameters():
        fixed = name.startswith("key_") or "patch_embed" in name or "pos_embed" in name
        assert (value.grad is None) == fixed, name


def test_the_resnet_form_has_temperature_one_and_no_frozen_part() -> None:
    torch.manual_seed(0)
    context = Context(data_set_size=8, batch_size=4, total_steps=1, steps_per_epoch=1)
    backbone = build_backbone("resnet18", image_size=64)
    method = MoCoV3(MoCoV3Config(hidden=32, dim=16), context, backbone)
    assert method.temperature == 1.0
    assert small_method("moco_v3").temperature == 0.2
    assert small_method("moco_v3", temperature=0.5).temperature == 0.5
    batch = batch_for(method, images=4)
    output = method(batch)
    output.loss.backward()
    assert all((value.grad is None) == name.startswith("key_") for name, value in method.named_parameters())
    assert output.loss.item() == pytest.approx(4 * output.loss_terms["instance"].item(), rel=1e-5)


def test_a_vit_gives_its_class_token_and_a_resnet_its_pooled_map() -> None:
    method = small_method("moco_v3")
    maps = {"class": torch.ones(2, 48), "patches": torch.zeros(2, 48, 6, 6)}
    assert torch.equal(method.vectors(maps), maps["class"])


def test_a_vits_heads_have_three_and_two_layers_with_batch_norm_after_each() -> None:
    method = small_method("moco_v3")
    kinds = [type(part).__name__ for part in method.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    widths = [part.out_features for part in method.projector if isinstance(part, torch.nn.Linear)]
    assert widths == [64, 64, 32]
    assert [part.out_features for part in method.predictor if isinstance(part, torch.nn.Linear)] == [64, 32]
    for head in (method.projector, method.predictor):
        assert head[-1].weight is None
        assert head[1].weight is not None


def test_a_resnets_heads_have_two_layers_and_the_predictor_no_last_batch_norm() -> None:
    context = Context(data_set_size=8, batch_size=4, total_steps=1, steps_per_epoch=1)
    method = MoCoV3(MoCoV3Config(hidden=32, dim=16), context, build_backbone("resnet18", image_size=64))
    kinds = [[type(part).__name__ for part in head] for head in (method.projector, method.predictor)]
    first = ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds == [[*first, "BatchNorm1d"], first]
    assert method.projector[-1].weight is None
    last_norms = [
        block.bn2.weight for layer in ("layer1", "layer4") for block in getattr(method.backbone.trunk, layer)
    ]
    assert not any(weight.any() for weight in last_norms)
    assert method.backbone.trunk.layer1[0].bn1.weight.all()


def test_a_vit_starts_as_moco_v3_draws_it() -> None:
    method = small_method("moco_v3")
    trunk, width = method.backbone.trunk, method.backbone.width
    bound = (6 / (2 * width)) ** 0.5  # of queries, keys and values apart; of all together (6 / 4C)^.5
    for block in trunk.blocks:
        for part in block.attn.qkv.weight.chunk(3):
            assert 0.98 * bound < part.abs().max() <= bound
    assert 0 < trunk.cls_token.abs().max() < 1e-5
    assert not trunk.patch_embed.proj.bias.any()
    assert torch.equal(trunk.cls_token, method.key_backbone.trunk.cls_token)


def test_momentum_starts_at_the_base_and_ends_at_one() -> None:
    method = small_method("moco_v3")
    assert method.after_step(0, 100)["schedule/momentum"] == pytest.approx(0.99)
    assert method.after_step(100, 100)["schedule/momentum"] == 1.0


def test_the_loss_falls_on_one_batch() -> None:
    method = small_method("moco_v3")
    losses = train(method, batch_for(method), 40)
    assert losses[-1] < 0.7 * losses[0]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="temperature"):
        build(MoCoV3Config, {"temperature": 0.0})
    with pytest.raises(UserError, match="momentum"):
        build(MoCoV3Config, {"momentum": -0.1})

"""BatchNorm statistics of untrained networks: plain means over batches, nothing else changed."""

import copy

import pytest
import torch
from torch import nn

from hapicl.engine.batchnorm import split_batch_norm
from hapicl.models.backbones.build import build_backbone
from hapicl.models.batch_statistics import has_batchnorm, reestimate_batchnorm, reestimated_copy


def batches(count=3):
    torch.manual_seed(0)
    return [5 + 2 * torch.randn(4, 3, 6, 6) for _ in range(count)]


def test_statistics_are_the_means_over_batches():
    norm = nn.BatchNorm2d(3, momentum=0.3)
    norm.running_mean.fill_(99.0)  # whatever was there before is forgotten
    given = batches()
    assert reestimate_batchnorm(norm, given, device="cpu") == 12
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in given]).mean(0))
    variances = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in given]).mean(0)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.3


@pytest.mark.parametrize("training", [True, False])
def test_no_parameter_changes_and_the_mode_is_put_back(training):
    backbone = build_backbone("resnet18", image_size=32).train(training)
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    reestimate_batchnorm(backbone, [torch.randn(4, 3, 32, 32)], device="cpu")
    assert backbone.training == training
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_parameters())
    assert not any(value.grad is not None for value in backbone.parameters())
    assert not torch.equal(backbone.state_dict()["trunk.bn1.running_var"], torch.ones(64))


def test_it_stops_when_enough_images_were_seen():
    assert reestimate_batchnorm(nn.BatchNorm2d(3), batches(9), device="cpu", limit=10) == 12


def test_a_network_without_batchnorm_is_left_alone():
    vit = build_backbone("vit_tiny_patch16_224", image_size=32)
    assert not has_batchnorm(vit)
    assert reestimate_batchnorm(vit, [], device="cpu") == 0


def test_a_copy_of_a_network_with_split_batchnorms_keeps_their_activations():
    network = build_backbone("timm:test_efficientnet", image_size=64)
    images = [torch.randn(4, 3, 64, 64)]
    copied = reestimated_copy(split_batch_norm(copy.deepcopy(network), 2), images, device="cpu").eval()
    reestimate_batchnorm(network, images, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(copied(images[0])["layer4"], network.eval()(images[0])["layer4"])

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from hapicl.common.errors import UserError
from hapicl.models.backbones.build import build_backbone
from hapicl.models.backbones.resnet import zero_init_residual


@pytest.mark.parametrize(
    ("size", "stem", "cells"),
    [(128, "imagenet", 4), (64, "auto", 4), (96, "auto", 6), (32, "auto", 4), (224, "auto", 7)],
)
def test_the_stem_leaves_a_map_of_at_least_four_cells(size, stem, cells):
    backbone = build_backbone("resnet18", image_size=size, stem=stem).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, size, size))
    assert maps["layer4"].shape == (1, 512, cells, cells)
    assert {name: value.shape[1] for name, value in maps.items()} == backbone.channels


@pytest.mark.parametrize("stem", ["imagenet", "no_pool", "stride1"])
def test_exported_weights_load_into_torchvision(stem):
    backbone = build_backbone("resnet18", image_size=128, stem=stem)
    model = torchvision.models.resnet18(weights=None)
    missing, unexpected = model.load_state_dict(backbone.export_state(), strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"]
    assert unexpected == []


def test_the_map_is_torchvisions_own():
    backbone = build_backbone("resnet18", image_size=224).eval()
    model = torchvision.models.resnet18(weights=None).eval()
    model.load_state_dict(backbone.export_state(), strict=False)
    extractor = create_feature_extractor(model, ["layer3", "layer4"])
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours, theirs = backbone(images), extractor(images)
    assert torch.equal(ours["layer3"], theirs["layer3"])
    assert torch.equal(ours["layer4"], theirs["layer4"])


def test_unknown_names_and_too_small_images_are_refused():
    with pytest.raises(UserError, match="unknown backbone 'resnet19'"):
        build_backbone("resnet19", image_size=224)
    with pytest.raises(UserError, match="unknown stem 'tiny'"):
        build_backbone("resnet18", image_size=224, stem="tiny")
    with pytest.raises(UserError, match="at least 32 pixels"):
        build_backbone("resnet18", image_size=24)


@pytest.mark.parametrize(("arch", "norm"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual_makes_every_block_the_identity(arch, norm):
    backbone = build_backbone(arch, image_size=32, stem="stride1")
    zero_init_residual(backbone)
    theirs = torchvision.models.get_model(arch, zero_init_residual=True)
    ours = {name for name, value in backbone.trunk.named_parameters() if not value.any()}
    assert ours == {name for name, value in theirs.named_parameters() if not value.any() and "fc" not in name}
    assert f"layer3.1.{norm}.weight" in ours
    values = torch.rand(2, backbone.channels["layer1"], 4, 4)
    torch.testing.assert_close(backbone.trunk.layer1[1](values), values)


@pytest.mark.parametrize("size", [32, 33, 63, 64, 65, 97, 224])
@pytest.mark.parametrize("stem", ["imagenet", "no_pool", "stride1"])
def test_cells_per_side_are_those_of_the_maps(size, stem):
    backbone = build_backbone("resnet18", image_size=size, stem=stem).eval()
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, size, size))
    for level, values in maps.items():
        assert backbone.cells_per_side(size, level) == values.shape[-1]
    assert backbone.cells_per_side(size) == maps["layer4"].shape[-1]

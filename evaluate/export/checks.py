"""Reading back what was exported, before it is believed: in the library's own network, features compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from ...common.errors import UserError
from ...models.backbones.base import Backbone, Vector
from ...models.backbones.resnet import ResNetBackbone
from ...models.backbones.timm_maps import TimmBackbone
from ...models.backbones.vit import ViTBackbone
from ...models.features import evaluation_vector
from ...models.weights import MATCH_REQUIRED, load_backbone
from .detectron import detectron_name, read_detectron
from .timm_form import timm_arguments, timm_name

Maps = Callable[[Tensor], Tensor]


def check_torchvision(backbone: Backbone, path: Path, arch: str) -> None:
    """Load into torchvision's own network; only its classifier may be missing; compare features."""
    model = torchvision.models.get_model(arch, weights=None)
    loaded = model.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert not loaded.unexpected_keys
    assert all(name.startswith("fc.") for name in loaded.missing_keys), loaded.missing_keys
    model.fc = nn.Identity()
    _compare(model, lambda images: model(images), _pooled_with_pooling_stem(backbone, arch))


def check_timm(backbone: Backbone, path: Path, arch: str) -> None:
    """Load into timm's own network and compare features; a ViT keeps its grid and its missing last norm."""
    state = load_file(path)
    arguments = timm_arguments(backbone)
    model: Any = timm.create_model(timm_name(backbone, arch), pretrained=False, **arguments)
    loaded = model.load_state_dict(state, strict=False)
    missing = loaded.missing_keys
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    # what follows the last map of a network of timm's may be much of a small one; its map is compared below
    limit = len(missing) if isinstance(backbone, TimmBackbone) else (1 - MATCH_REQUIRED) * len(state)
    if len(missing) > limit:
        raise UserError(f"timm's {arch} has no place for {path}: {', '.join(missing[:3])} would stay random")
    if isinstance(backbone, TimmBackbone):
        _compare(
            model,
            lambda images: model.forward_intermediates(images, intermediates_only=True)[-1],
            lambda images: backbone(images)[backbone.last],
            side=backbone.image_size,
            channels=backbone.in_channels,
        )
    elif isinstance(backbone, ResNetBackbone):
        usual = _pooled_with_pooling_stem(backbone, arch)
        _compare(model, lambda images: model(images), usual, channels=backbone.in_channels)
    else:
        _compare(
            model,
            lambda images: model.forward_features(images)[:, 1:].mean(1),
            lambda images: backbone(images)[backbone.last].mean(dim=(2, 3)),
            side=arguments["img_size"],
            channels=backbone.in_channels,
        )


def check_detectron(backbone: Backbone, path: Path, arch: str) -> None:
    """Undo the renaming: every tensor must come back under its own name, bit for bit."""
    arrays = read_detectron(path)
    for name, value in backbone.export_state().items():
        if not name.endswith("num_batches_tracked"):
            assert np.array_equal(arrays.pop(detectron_name(name)), value.numpy()), name
    assert not arrays, sorted(arrays)


def check_safetensors(backbone: Backbone, path: Path, arch: str) -> None:
    """Load the file as any user of ours would."""
    again, _ = load_backbone(str(path))
    for name, value in backbone.export_state().items():
        assert torch.equal(again.export_state()[name], value), name


def check_hub(backbone: Backbone, folder: Path, arch: str, *, vector: Vector, image_size: int) -> None:
    """Make the network from a folder as timm does, with its vector and with its maps, and compare both."""
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    maps: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True)
    channels = backbone.in_channels
    if isinstance(backbone, ResNetBackbone):
        usual = _pooled_with_pooling_stem(backbone, arch)
        _compare(model, lambda images: model(images), usual, channels=channels)
        _compare(maps, lambda images: maps(images)[-1].mean(dim=(2, 3)), usual, channels=channels)
        return
    if isinstance(backbone, ViTBackbone):  # timm's maps are those before the last norm
        norm = backbone.trunk.norm
        _compare(
            model,
            lambda images: model(images),
            lambda images: evaluation_vector(backbone, images, vector),
            side=image_size,
            channels=channels,
        )
        _compare(
            maps,
            lambda images: norm(maps(images)[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            lambda images: backbone(images)[backbone.last],
            side=image_size,
            channels=channels,
        )
        return
    _compare(
        maps,
        lambda images: maps(images)[-1],
        lambda images: backbone(images)[backbone.last],
        side=image_size,
        channels=channels,
    )


def _pooled_with_pooling_stem(backbone: Backbone, arch: str) -> Maps:
    """The backbone's pooled features with the libraries' stem (stride 32), whatever it was trained with."""
    usual = ResNetBackbone(arch, "imagenet", backbone.in_channels).eval()
    usual.load_state_dict(backbone.state_dict())
    return lambda images: usual(images)["layer4"].mean(dim=(2, 3))


def _compare(model: nn.Module, theirs: Maps, ours: Maps, *, side: int = 64, channels: int = 3) -> None:
    """Features of one fixed input must agree within rounding."""
    images = torch.linspace(-2, 2, channels * side * side).reshape(1, channels, side, side)
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-5)

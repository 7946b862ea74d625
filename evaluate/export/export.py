"""`hapicl export`: a backbone as a file that torchvision, timm, detectron2 or safetensors loads.

Every file is read back before it is believed: into the library's own network where it is installed (features
compared), through the renaming for detectron2, which pip does not offer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.errors import UserError, did_you_mean
from ...engine.checkpoint import write_torch
from ...models.backbones.base import Backbone
from ...models.backbones.resnet import ResNetBackbone
from ...models.backbones.timm_maps import TimmBackbone
from ...models.backbones.vit import ViTBackbone
from ...models.weights import MATCH_REQUIRED, State, load_backbone
from ...models.write_weights import write_safetensors
from .detectron import detectron_name, read_detectron, write_detectron
from .usage import timm_arguments, timm_name, usage

SUFFIX = {"torchvision": ".pth", "timm": ".safetensors", "detectron2": ".pkl", "safetensors": ".safetensors"}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    keys: int
    usage: str  # how to load it, for the user


def export_backbone(spec: str, target: str, out: Path, *, arch: str | None = None) -> tuple[Exported, str]:
    """Write the backbone in `spec` for another library and check that it loads there.

    Args:
        spec: weights as `load_backbone` takes them, not `random`.
        target: a key of `SUFFIX`.
        out: the file; a name without suffix gets the target's.
        arch: the backbone's name where the file does not say.

    Returns:
        What was written, and the line that says how much of `spec` matched.

    Raises:
        UserError: for an unknown target, a file that exists or cannot be written, a ViT for torchvision or
            detectron2, or weights that do not match.
    """
    if target not in SUFFIX:
        raise UserError(f"--to {target}{did_you_mean(target, SUFFIX)}: choose one of {', '.join(SUFFIX)}")
    if spec == "random":
        raise UserError("export wants trained weights, not `random`")
    path = out if out.suffix else out.with_suffix(SUFFIX[target])
    if path.suffix != SUFFIX[target]:  # timm, detectron2 and our own reader go by it
        raise UserError(f"--to {target} writes a {SUFFIX[target]} file; give --out {out}{SUFFIX[target]}")
    if path.is_file():
        raise UserError(f"{path} exists already; choose another --out")
    refuse_unwritable(path)
    backbone, info = load_backbone(spec, arch=arch)
    state = {name: value.clone().contiguous() for name, value in backbone.export_state().items()}
    if target in {"torchvision", "detectron2"} and not isinstance(backbone, ResNetBackbone):
        raise UserError(f"{target} has no network of the form of {info.arch}; use --to timm or safetensors")
    writer = {"torchvision": _write_torch, "detectron2": write_detectron}.get(target)
    if writer is None:
        about = {"arch": info.arch, "stem": info.stem, "method": info.method}
        if isinstance(backbone, ViTBackbone):  # its positions are of this size
            about["image_size"] = str(backbone.grid * backbone.patch_size)
        elif isinstance(backbone, TimmBackbone):
            about["image_size"] = str(backbone.image_size)
        write_safetensors(state, path, about)
    else:
        writer(state, path)
    _check[target](backbone, path, info.arch)
    return Exported(path, len(state), usage(target, backbone, path, info.arch)), info.line()


def _write_torch(state: State, path: Path) -> None:
    """A plain state_dict."""
    with atomic_write(path) as part:
        write_torch(state, part)


def _check_torchvision(backbone: Backbone, path: Path, arch: str) -> None:
    """Load into torchvision's own network; only its classifier may be missing; compare features."""
    model = torchvision.models.get_model(arch, weights=None)
    loaded = model.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert not loaded.unexpected_keys
    assert all(name.startswith("fc.") for name in loaded.missing_keys), loaded.missing_keys
    model.fc = nn.Identity()
    _compare(lambda images: model(images), _pooled_with_pooling_stem(backbone, arch), model)


def _check_timm(backbone: Backbone, path: Path, arch: str) -> None:
    """Load into timm's own network and compare features; a ViT keeps its grid and its missing last norm."""
    state = load_file(path)
    arguments = timm_arguments(backbone)
    name = timm_name(backbone, arch)
    model: Any = timm.create_model(name, pretrained=False, **arguments)
    loaded = model.load_state_dict(state, strict=False)
    missing = loaded.missing_keys
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    # what follows the last map of a network of timm's may be much of a small one; its map is compared below
    limit = len(missing) if isinstance(backbone, TimmBackbone) else (1 - MATCH_REQUIRED) * len(state)
    if len(missing) > limit:
        raise UserError(f"timm's {arch} has no place for {path}: {', '.join(missing[:3])} would stay random")
    if isinstance(backbone, TimmBackbone):
        _compare(
            lambda images: model.forward_intermediates(images, intermediates_only=True)[-1],
            lambda images: backbone(images)[backbone.last],
            model,
            side=backbone.image_size,
        )
    elif isinstance(backbone, ResNetBackbone):
        _compare(lambda images: model(images), _pooled_with_pooling_stem(backbone, arch), model)
    else:
        _compare(
            lambda images: model.forward_features(images)[:, 1:].mean(1),
            lambda images: backbone(images)[backbone.last].mean(dim=(2, 3)),
            model,
            side=arguments["img_size"],
        )


def _check_detectron(backbone: Backbone, path: Path, arch: str) -> None:
    """Undo the renaming: every tensor must come back under its own name, bit for bit."""
    arrays = read_detectron(path)
    for name, value in backbone.export_state().items():
        if not name.endswith("num_batches_tracked"):
            assert np.array_equal(arrays.pop(detectron_name(name)), value.numpy()), name
    assert not arrays, sorted(arrays)


def _check_safetensors(backbone: Backbone, path: Path, arch: str) -> None:
    """Load the file as any user of ours would."""
    again, _ = load_backbone(str(path))
    for name, value in backbone.export_state().items():
        assert torch.equal(again.export_state()[name], value), name


_check: dict[str, Callable[[Backbone, Path, str], None]] = {
    "torchvision": _check_torchvision,
    "timm": _check_timm,
    "detectron2": _check_detectron,
    "safetensors": _check_safetensors,
}


def _pooled_with_pooling_stem(backbone: Backbone, arch: str) -> Callable[[Tensor], Tensor]:
    """The backbone's pooled features with the libraries' stem (stride 32), whatever it was trained with."""
    usual = ResNetBackbone(arch, "imagenet").eval()
    usual.load_state_dict(backbone.state_dict())
    return lambda images: usual(images)["layer4"].mean(dim=(2, 3))


def _compare(
    theirs: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor], model: nn.Module, side: int = 64
) -> None:
    """Features of one fixed input must agree within rounding."""
    images = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side)
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-5)

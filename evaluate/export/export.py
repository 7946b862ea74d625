"""`hapicl export`: a backbone as a file that torchvision, timm, detectron2 or safetensors loads.

Every file is read back before it is believed: into the library's own network where it is installed (features
compared), through the renaming for detectron2, which pip does not offer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.errors import UserError, did_you_mean
from ...engine.checkpoint import write_torch
from ...models.backbones.base import Backbone
from ...models.backbones.resnet import ResNetBackbone
from ...models.backbones.timm_maps import TimmBackbone
from ...models.backbones.vit import ViTBackbone
from ...models.weights import RANDOM, State, WeightsInfo, load_backbone
from ...models.write_weights import write_safetensors
from .checks import check_detectron, check_safetensors, check_timm, check_torchvision
from .detectron import write_detectron
from .usage import Snippets, as_text, usage

SUFFIX = {"torchvision": ".pth", "timm": ".safetensors", "detectron2": ".pkl", "safetensors": ".safetensors"}
TARGETS = (*SUFFIX, "hub", "onnx")  # the last two in `hub.py` and `onnx_graph.py`


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    keys: int
    snippets: Snippets  # how to load it, by library

    @property
    def usage(self) -> str:
        """How to load it, for the user."""
        return as_text(self.snippets)


def export_backbone(spec: str, target: str, out: Path, *, arch: str | None = None) -> tuple[Exported, str]:
    """Write the backbone in `spec` for another library and check that it loads there.

    Args:
        spec: weights as `load_backbone` takes them, not random.
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
        raise UserError(f"--to {target}{did_you_mean(target, TARGETS)}: choose one of {', '.join(TARGETS)}")
    path = place_of(out, target, SUFFIX[target])
    backbone, info = trained_backbone(spec, arch)
    state = {name: value.clone().contiguous() for name, value in backbone.export_state().items()}
    channels = backbone.in_channels
    if target in {"torchvision", "detectron2"} and channels != 3:
        raise UserError(
            f"{target}'s networks take 3 channels, and these weights {channels}; use --to timm or safetensors"
        )
    if target in {"torchvision", "detectron2"} and not isinstance(backbone, ResNetBackbone):
        raise UserError(f"{target} has no network of the form of {info.arch}; use --to timm or safetensors")
    writer = {"torchvision": _write_torch, "detectron2": write_detectron}.get(target)
    if writer is None:
        write_safetensors(state, path, about_weights(backbone, info))
    else:
        writer(state, path)
    _CHECKS[target](backbone, path, info.arch)
    return Exported(path, len(state), usage(target, backbone, path, info.arch)), info.line()


def place_of(out: Path, target: str, suffix: str) -> Path:
    """The file that is to be written, with the suffix by which other libraries and our reader know it.

    Raises:
        UserError: for another suffix, a file that is there, or a place that cannot be written.
    """
    path = out if out.suffix else out.with_suffix(suffix)
    if path.suffix != suffix:
        raise UserError(f"--to {target} writes a {suffix} file; give --out {out}{suffix}")
    if path.is_file():
        raise UserError(f"{path} exists already; choose another --out")
    refuse_unwritable(path)
    return path


def trained_backbone(
    spec: str, arch: str | None, *, image_size: int | None = None
) -> tuple[Backbone, WeightsInfo]:
    """The backbone that is to be exported; see `load_backbone`.

    Raises:
        UserError: for random weights, or what `load_backbone` refuses.
    """
    if spec in RANDOM:
        raise UserError(f"export wants trained weights, not `{spec}`")
    return load_backbone(spec, arch=arch, image_size=image_size)


def about_weights(backbone: Backbone, info: WeightsInfo) -> dict[str, str]:
    """What a safetensors file says of the network, so that our reader builds it again."""
    about = {"arch": info.arch, "stem": info.stem, "method": info.method}
    if isinstance(backbone, ViTBackbone):  # its positions are of this size
        about["image_size"] = str(backbone.grid * backbone.patch_size)
    elif isinstance(backbone, TimmBackbone):
        about["image_size"] = str(backbone.image_size)
    return about | backbone.inputs.as_texts()


def _write_torch(state: State, path: Path) -> None:
    """A plain state_dict."""
    with atomic_write(path) as part:
        write_torch(state, part)


_CHECKS: dict[str, Callable[[Backbone, Path, str], None]] = {
    "torchvision": check_torchvision,
    "timm": check_timm,
    "detectron2": check_detectron,
    "safetensors": check_safetensors,
}

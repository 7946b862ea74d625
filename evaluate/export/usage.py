"""What `hapicl export` prints: the lines that load the written file, to be run as they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...models.backbones.base import Backbone
from ...models.backbones.resnet import restore_lines
from ...models.backbones.timm_maps import TimmBackbone
from ...models.backbones.vit import ViTBackbone


def usage(target: str, backbone: Backbone, path: Path, arch: str) -> str:
    """Lines of Python that load a file.

    Args:
        target: library it was written for.
        backbone: what it holds.
        path: the file.
        arch: the backbone's name.
    """
    return "\n".join(_LINES[target](backbone, path, arch))


def timm_arguments(backbone: Backbone) -> dict[str, Any]:
    """Arguments of `timm.create_model` beside the name: without a head, and a ViT as it was trained."""
    if isinstance(backbone, TimmBackbone):
        size = {"img_size": backbone.image_size} if backbone.fixed_size else {}
        own = backbone.stride == backbone.own_stride
        return {"num_classes": 0, **size, **({} if own else {"output_stride": backbone.stride})}
    if not isinstance(backbone, ViTBackbone):
        return {"num_classes": 0}
    patch = backbone.patch_size
    sizes: dict[str, Any] = {"img_size": backbone.grid * patch, "patch_size": patch}
    if "_heads" in backbone.stem:
        sizes["num_heads"] = backbone.heads
    if "norm.weight" not in backbone.export_state():
        sizes["final_norm"] = False
    return {"num_classes": 0, **sizes}


def timm_name(backbone: Backbone, arch: str) -> str:
    """The name under which timm makes the network."""
    return backbone.name if isinstance(backbone, TimmBackbone) else arch


def _torchvision(backbone: Backbone, path: Path, arch: str) -> list[str]:
    return [
        "import torch, torchvision",
        f"model = torchvision.models.{arch}()",
        "# only fc stays new",
        f"model.load_state_dict(torch.load({_text(path)}, weights_only=True), strict=False)",
        *_strides(backbone),
    ]


def _timm(backbone: Backbone, path: Path, arch: str) -> list[str]:
    arguments = ", ".join(f"{name}={value}" for name, value in timm_arguments(backbone).items())
    if isinstance(backbone, TimmBackbone):
        return [
            "import timm",
            "from safetensors.torch import load_file",
            f'model = timm.create_model("{backbone.name}", {arguments})',
            "# only what follows the last map stays new",
            f"model.load_state_dict(load_file({_text(path)}), strict=False)",
        ]
    create = f'model = timm.create_model("{arch}", {arguments}, checkpoint_path={_text(path)})'
    torch = ["import torch"] if _strides(backbone) else []
    return ["import timm", *torch, create, *_strides(backbone)]


def _safetensors(backbone: Backbone, path: Path, arch: str) -> list[str]:
    return [
        "from safetensors.torch import load_file",
        f"state = load_file({_text(path)})",
        f"# or: hapicl evaluate knn {path} --train DIR --val DIR",
    ]


def _detectron2(backbone: Backbone, path: Path, arch: str) -> list[str]:
    depth = re.search(r"resnet(\d+)", arch)
    assert depth is not None
    small = ["cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64"] if depth[1] in ("18", "34") else []
    wide = ["cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 128"] if arch.startswith("wide") else []
    return [
        "from detectron2.config import get_cfg",
        "cfg = get_cfg()",
        f"cfg.MODEL.WEIGHTS = {_text(path)}",
        'cfg.INPUT.FORMAT = "RGB"',
        "cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]",
        "cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]",
        "cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False",
        'cfg.MODEL.RESNETS.NORM = "SyncBN"  # or "BN" on one GPU',
        "cfg.MODEL.BACKBONE.FREEZE_AT = 0",
        f"cfg.MODEL.RESNETS.DEPTH = {depth[1]}",
        *small,
        *wide,
        *([] if backbone.stem == "imagenet" else [f"# {_trained_with(backbone)}, which detectron2 has not"]),
    ]


def _strides(backbone: Backbone) -> list[str]:
    """What gives another library's ResNet the strides of training, where those were others."""
    lines = restore_lines(backbone.stem)
    return lines and [f"# {_trained_with(backbone)}; the weights fit the usual one too:", *lines]


def _text(path: Path) -> str:
    """A path as Python and JSON write it."""
    return json.dumps(str(path), ensure_ascii=False)


def _trained_with(backbone: Backbone) -> str:
    return f"trained with the stem {backbone.stem!r}, of a smaller stride"


_LINES: dict[str, Callable[[Backbone, Path, str], list[str]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "safetensors": _safetensors,
    "detectron2": _detectron2,
}

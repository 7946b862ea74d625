"""What timm needs to make the network of a backbone again: name, arguments, and the hub's config.json."""

from __future__ import annotations

from typing import Any

import timm
import torch

from ...models.backbones.base import Backbone, Vector
from ...models.backbones.timm_maps import TimmBackbone
from ...models.backbones.vit import ViTBackbone
from ...models.preprocess import default_resize

# timm's names of what stands for an image
POOLS: dict[Vector, str] = {"mean": "avg", "class": "token"}


def timm_arguments(backbone: Backbone) -> dict[str, Any]:
    """Arguments of `timm.create_model` beside the name: without a head, and a ViT as it was trained."""
    usual = {"num_classes": 0} | ({} if backbone.in_channels == 3 else {"in_chans": backbone.in_channels})
    if isinstance(backbone, TimmBackbone):
        size = {"img_size": backbone.image_size} if backbone.fixed_size else {}
        own = backbone.stride == backbone.own_stride
        return {**usual, **size, **({} if own else {"output_stride": backbone.stride})}
    if not isinstance(backbone, ViTBackbone):
        return usual
    patch = backbone.patch_size
    sizes: dict[str, Any] = {"img_size": backbone.grid * patch, "patch_size": patch}
    if "_heads" in backbone.stem:
        sizes["num_heads"] = backbone.heads
    if "norm.weight" not in backbone.export_state():
        sizes["final_norm"] = False
    return {**usual, **sizes}


def timm_name(backbone: Backbone, arch: str) -> str:
    """The name under which timm makes the network."""
    return backbone.name if isinstance(backbone, TimmBackbone) else arch


def trained_size(backbone: Backbone, described: dict[str, Any]) -> int:
    """Side of the images that a backbone was trained on, pixels; 224 where nothing says it.

    Args:
        backbone: a ViT's positions are of one size.
        described: what `describe_weights` gave.
    """
    if isinstance(backbone, ViTBackbone):
        return backbone.grid * backbone.patch_size
    if isinstance(backbone, TimmBackbone) and backbone.fixed_size:
        return backbone.image_size
    return int(described.get("image_size", 224))


def hub_config(backbone: Backbone, arch: str, *, vector: Vector, image_size: int) -> dict[str, Any]:
    """The config.json that timm reads beside `model.safetensors`.

    `timm.create_model("local-dir:...", pretrained=True)` then gives the vector that stands for an image in
    our evaluations, on images as our evaluations show them.

    Args:
        backbone: what the weights are of.
        arch: its name.
        vector: of a ViT: the mean patch token or the class token.
        image_size: side of the images it is for, pixels.
    """
    arguments = timm_arguments(backbone)
    if isinstance(backbone, ViTBackbone):  # the norm stays before the mean, as in training
        arguments |= {"global_pool": POOLS[vector], "fc_norm": False}
    with torch.device("meta"):
        model: Any = timm.create_model(timm_name(backbone, arch), pretrained=False, **arguments)
    known = model.pretrained_cfg
    mean, std = backbone.inputs.statistics
    fixed = isinstance(backbone, ViTBackbone) or (isinstance(backbone, TimmBackbone) and backbone.fixed_size)
    return {
        "architecture": timm_name(backbone, arch),
        "num_classes": 0,
        "num_features": int(model.num_features),
        "global_pool": arguments.get("global_pool", "avg"),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "hapicl",
            "custom_load": False,
            "input_size": [backbone.in_channels, image_size, image_size],
            "fixed_input_size": fixed,
            "interpolation": "bicubic",
            "crop_pct": round(image_size / default_resize(image_size), 4),
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }

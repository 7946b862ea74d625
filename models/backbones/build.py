"""Backbones by name, their maps by name.

Shape legend: B images, C channels, S map cells per side.
"""

from __future__ import annotations

from ...common.errors import UserError, did_you_mean
from .base import Backbone, Stem
from .resnet import RESNETS, STEM_STRIDE, ResNetBackbone

# `test_vit` is timm's miniature
VIT_PREFIXES = ("vit_", "deit", "test_vit")


def build_backbone(arch: str, *, image_size: int, stem: Stem = "auto") -> Backbone:
    """Build a backbone by name.

    Args:
        arch: a torchvision ResNet's name, or a timm Vision Transformer's (see `vit.build_vit`).
        image_size: side of the training views, pixels.
        stem: `imagenet` (stride 32), `no_pool` (16), `stride1` (8); `auto` takes the largest stride that
            leaves a map of at least 4 x 4 cells. A ViT's is `patchP`, P pixels; `auto` takes its name's.

    Raises:
        UserError: for an unknown name or stem, or when no stem leaves 4 x 4 cells.
    """
    if arch.startswith(VIT_PREFIXES):
        from .vit import build_vit  # timm takes seconds to import, and ResNets need none of it

        return build_vit(arch, image_size=image_size, stem=stem)
    if arch not in RESNETS:
        hint = did_you_mean(arch, RESNETS)
        raise UserError(
            f"unknown backbone {arch!r}{hint}; choose one of {', '.join(RESNETS)}, or a Vision Transformer "
            "by timm's name, such as vit_tiny_patch16_224"
        )
    if stem not in {"auto", *STEM_STRIDE}:
        raise UserError(f"unknown stem {stem!r}; choose auto, {', '.join(STEM_STRIDE)}")
    if stem == "auto":
        fitting = [name for name, stride in STEM_STRIDE.items() if image_size // stride >= 4]
        if not fitting:
            raise UserError(
                f"--image-size {image_size} leaves a map under 4 x 4 cells; use at least 32 pixels"
            )
        stem = fitting[0]
    return ResNetBackbone(arch, stem)

"""Backbones by name: which library's network a name means."""

from __future__ import annotations

from .base import Backbone, Stem
from .resnet import RESNETS, build_resnet

# how timm's names of Vision Transformers begin; `test_vit` is its miniature
VIT_PREFIXES = ("vit_", "deit", "test_vit")


def build_backbone(arch: str, *, image_size: int, stem: Stem = "auto") -> Backbone:
    """Build a backbone by name, with random weights.

    Args:
        arch: a torchvision ResNet's name, or a timm Vision Transformer's.
        image_size: side of the training views, pixels.
        stem: how the image enters, see `resnet.build_resnet` and `vit.build_vit`; `auto` fits it to the size.

    Raises:
        UserError: for an unknown name, or a stem or image size that does not fit.
    """
    if arch.startswith(VIT_PREFIXES):
        from .vit import build_vit  # timm takes seconds to import, and ResNets need none of it

        return build_vit(arch, image_size=image_size, stem=stem)
    return build_resnet(arch, image_size=image_size, stem=stem)


def arch_of_timm(name: str) -> str:
    """Our name of the backbone that timm's name, perhaps with the tag of its weights, means."""
    base = name.partition(".")[0]
    return base if base in RESNETS or base.startswith(VIT_PREFIXES) else f"timm:{base}"

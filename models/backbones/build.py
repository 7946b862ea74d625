"""Backbones by name: which library's network a name means."""

from __future__ import annotations

from ...common.errors import UserError
from ...data.images.inputs import RGB, Inputs
from ..registry import REGISTERED
from .base import Backbone, Stem
from .names import TIMM
from .resnet import RESNETS, build_resnet

# how timm's names of Vision Transformers begin; `test_vit` is its miniature
VIT_PREFIXES = ("vit_", "deit", "test_vit")


def build_backbone(arch: str, *, image_size: int, stem: Stem = "auto", inputs: Inputs = RGB) -> Backbone:
    """Build a backbone by name, with random weights.

    Args:
        arch: a torchvision ResNet's name, a timm Vision Transformer's, `timm:` and any name of timm's, or one
            given to `hapicl.models.register`.
        image_size: side of the training views, pixels.
        stem: how the image enters, see `resnet.build_resnet`, `vit.build_vit` and `timm_maps.build_timm`;
            `auto` fits it to the size.
        inputs: what it reads of an image file; the backbone remembers it.

    Raises:
        UserError: for an unknown name, or a stem, image size or number of channels that does not fit.
    """
    backbone = _build(arch, image_size, stem, inputs.in_channels)
    backbone.inputs = inputs
    return backbone


def _build(arch: str, image_size: int, stem: Stem, in_channels: int) -> Backbone:
    """Build by whatever the name belongs to."""
    if arch in REGISTERED:
        return _build_registered(arch, image_size, stem, in_channels)
    if arch.startswith(TIMM):
        from .timm_maps import build_timm

        return build_timm(arch, image_size=image_size, stem=stem, in_channels=in_channels)
    if arch.startswith(VIT_PREFIXES):
        from .vit import build_vit  # timm takes seconds to import, and ResNets need none of it

        return build_vit(arch, image_size=image_size, stem=stem, in_channels=in_channels)
    return build_resnet(arch, image_size=image_size, stem=stem, in_channels=in_channels)


def _build_registered(arch: str, image_size: int, stem: Stem, in_channels: int) -> Backbone:
    """Build a user's backbone, and see that it is what the rest of the package takes it for."""
    backbone = REGISTERED[arch](image_size=image_size, stem=stem)
    if not isinstance(backbone, Backbone):
        raise UserError(f"what was registered as {arch!r} builds no hapicl.models.backbones.base.Backbone")
    missing = [name for name in ("channels", "last", "stride", "stem") if not hasattr(backbone, name)]
    if missing or backbone.last not in backbone.channels:
        raise UserError(
            f"the backbone registered as {arch!r} lacks {', '.join(missing) or 'a map of the name `last`'}"
        )
    if backbone.in_channels != in_channels:
        raise UserError(
            f"the backbone registered as {arch!r} takes {backbone.in_channels} channels (its in_channels), "
            f"and the setting in_channels is {in_channels}"
        )
    return backbone


def arch_of_timm(name: str) -> str:
    """Our name of the backbone that timm's name, perhaps with the tag of its weights, means."""
    base = name.partition(".")[0]
    return base if base in RESNETS or base.startswith(VIT_PREFIXES) else TIMM + base

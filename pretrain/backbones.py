"""Backbones by name, their maps by name.

Shape legend: B images, C channels, S map cells per side.
"""

from __future__ import annotations

from typing import Literal

import torchvision
from torch import Tensor, nn

from ..data.errors import UserError

# a ViT's stem is its patch: "patch8" for 8 x 8 pixels; so any text is a stem here
Stem = Literal["auto", "imagenet", "no_pool", "stride1"] | str

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
# `test_vit` is timm's miniature
VIT_PREFIXES = ("vit_", "deit", "test_vit")
# Total stride of the last map by stem. The layers keep torchvision's names and shapes, only strides differ,
# so that # the weights of every stem load everywhere.
STEM_STRIDE = {"imagenet": 32, "no_pool": 16, "stride1": 8}


class Backbone(nn.Module):
    """A network that gives feature maps by name.

    `channels` maps each map's name to its channels; `last` names the map that heads and evaluation use by
    default; `stride` is image pixels per cell of `last`; `stem` is the name to build it again with.
    """

    channels: dict[str, int]
    last: str
    stride: int
    stem: str

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to maps (B, C, S, S) by name."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def export_state(self) -> dict[str, Tensor]:
        """Weights under the names of the library that users load them with."""
        raise TypeError(f"{type(self).__name__} has no export")

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `state` (names as in `export_state`) made fit to be loaded here, such as at another size.

        Whoever loads weights calls this first; it may also change the backbone to match the file.
        """
        return state


class ResNetBackbone(Backbone):
    """torchvision's ResNet without average pool and classifier; maps `layer1` to `layer4`."""

    def __init__(self, arch: str, stem: Stem) -> None:
        """Build with torchvision's random initialisation."""
        super().__init__()
        self.trunk = torchvision.models.get_model(arch, weights=None)
        self.trunk.avgpool = nn.Identity()
        width = self.trunk.fc.in_features
        self.trunk.fc = nn.Identity()
        if stem in {"no_pool", "stride1"}:
            self.trunk.maxpool = nn.Identity()
        if stem == "stride1":
            self.trunk.conv1.stride = (1, 1)
        self.channels = {f"layer{level}": width // 2 ** (4 - level) for level in (1, 2, 3, 4)}
        self.last = "layer4"
        self.stride = STEM_STRIDE[stem]
        self.stem = stem

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to `layer1` .. `layer4`, each (B, C, S, S)."""
        trunk = self.trunk
        values = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        maps = {}
        for name in self.channels:
            values = getattr(trunk, name)(values)
            maps[name] = values
        return maps

    def export_state(self) -> dict[str, Tensor]:
        """Weights under torchvision's names, without `fc`."""
        return {name: value.detach() for name, value in self.trunk.state_dict().items()}


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
        raise UserError(
            f"unknown backbone {arch!r}; choose one of {', '.join(RESNETS)}, or a Vision Transformer "
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

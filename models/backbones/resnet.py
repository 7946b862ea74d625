"""torchvision's ResNets as backbones, with stems for small images.

Shape legend: B images, C channels, S map cells per side.
"""

from __future__ import annotations

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ...common.errors import UserError, did_you_mean
from .base import Backbone, Stem
from .names import RESNETS as RESNETS  # other modules look for it here

# Total stride of the last map by stem. The layers keep torchvision's names and shapes, only strides differ,
# so that the weights of every stem load everywhere.
STEM_STRIDE = {"imagenet": 32, "no_pool": 16, "stride1": 8}


class ResNetBackbone(Backbone):
    """torchvision's ResNet without average pool and classifier; maps `layer1` to `layer4`."""

    def __init__(self, arch: str, stem: Stem, in_channels: int = 3) -> None:
        """Build with torchvision's random initialisation."""
        super().__init__()
        self.trunk = torchvision.models.get_model(arch, weights=None)
        self.in_channels = in_channels
        if in_channels != 3:
            self.trunk.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
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

    def stride_of(self, level: str) -> int:
        """Each layer halves the map of the one before it."""
        return self.stride >> (4 - int(level.removeprefix("layer")))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in_channels, H, W) to `layer1` .. `layer4`, each (B, C, S, S)."""
        trunk = self.trunk
        values = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
        maps = {}
        for name in self.channels:
            values = getattr(trunk, name)(values)
            maps[name] = values
        return maps

    def stages(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """`stem` and the four layers."""
        trunk = self.trunk
        layers: dict[str, list[nn.Module | nn.Parameter]] = {
            name: [getattr(trunk, name)] for name in self.channels
        }
        return {"stem": [trunk.conv1, trunk.bn1], **layers}

    def export_state(self) -> dict[str, Tensor]:
        """Weights under torchvision's names, without `fc`."""
        return {name: value.detach() for name, value in self.trunk.state_dict().items()}


def build_resnet(arch: str, *, image_size: int, stem: Stem = "auto", in_channels: int = 3) -> ResNetBackbone:
    """Build a ResNet by torchvision's name.

    Args:
        arch: one of `RESNETS`.
        image_size: side of the training views, pixels; it decides the stem `auto`.
        stem: `imagenet` (stride 32), `no_pool` (16), `stride1` (8); `auto` takes the largest stride that
            leaves a map of at least 4 x 4 cells.
        in_channels: of the images.

    Raises:
        UserError: for an unknown name or stem, or when no stem leaves 4 x 4 cells.
    """
    if arch not in RESNETS:
        raise UserError(
            f"unknown backbone {arch!r}{did_you_mean(arch, RESNETS)}; choose one of {', '.join(RESNETS)}, "
            "a Vision Transformer by timm's name, such as vit_tiny_patch16_224, or timm:NAME, such as "
            "timm:convnext_atto"
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
    return ResNetBackbone(arch, stem, in_channels)


def restore_lines(stem: Stem) -> list[str]:
    """Lines of Python that give torchvision's or timm's ResNet, called `model`, the strides of a stem.

    The weights fit without them, and the features are then others.
    """
    pool = ["model.maxpool = torch.nn.Identity()"] if stem in {"no_pool", "stride1"} else []
    return pool + (["model.conv1.stride = (1, 1)"] if stem == "stride1" else [])


def zero_init_residual(backbone: Backbone) -> None:
    """Start the last BatchNorm of every residual block at weight 0, so that each block is the identity.

    Goyal et al. (arXiv 1706.02677), section 5.1; torchvision's option of the same name. Weights that came
    from a file stay.

    Raises:
        UserError: if the backbone has no residual blocks.
    """
    if not isinstance(backbone, ResNetBackbone):
        raise UserError(
            "zero_init_residual is of ResNets: leave it out (--set config.zero_init_residual=false), or "
            "choose one by --arch"
        )
    if backbone.has_weights:
        return
    for block in backbone.trunk.modules():
        if isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
        elif isinstance(block, Bottleneck):
            nn.init.zeros_(block.bn3.weight)

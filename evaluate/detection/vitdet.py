"""ViTDet: a plain ViT with windows, a simple feature pyramid on its last map, torchvision's Mask R-CNN.

Li et al., ECCV 2022 (arXiv 2203.16527), with the sizes of detectron2's project ViTDet, whose names the trunk
has: `backbone.net.blocks`, `backbone.simfp_2` to `simfp_5`.
Shape legend: B images, C channels, H and W pixels, S map cells per side.
"""

from __future__ import annotations

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from ...common.errors import UserError
from ...models.backbones.base import Backbone
from ...models.backbones.vit import ViTBackbone
from ...models.map_scales import FACTORS, rescaling
from ...models.window_attention import attend_in_windows
from .models import rcnn_on_levels, shared_arguments
from .protocols import ViTDetShape

PATCHES = (4, 8, 16, 32)  # pixels; RoIAlign takes maps whose strides are powers of two
PADDING = 32  # images are padded to multiples of so many pixels


class NormedConvolution(nn.Conv2d):
    """A convolution without bias and the LayerNorm after it, under detectron2's names."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        """Build for a kernel of `side` x `side` that keeps the map's size."""
        super().__init__(inputs, outputs, side, padding=side // 2, bias=False)
        self.norm = LayerNorm2d(outputs)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, S, S) to (B, outputs, S, S)."""
        normalised: Tensor = self.norm(super().forward(values))
        return normalised


class SimpleFeaturePyramid(nn.Module):
    """A plain ViT and the pyramid made of its last map alone: strides of a quarter to two patches."""

    def __init__(self, backbone: ViTBackbone, shape: ViTDetShape, drop_path: float) -> None:
        """Change the backbone's blocks in place and build the pyramid; all its weights are trained.

        The class token and the last LayerNorm are left out, as in ViTDet.
        """
        super().__init__()
        self.net = backbone.trunk
        self._backbone = (backbone,)  # in a tuple: its parameters go by the name of `net`
        self.out_channels = shape.channels
        backbone.prepare_fine_tuning(drop_path)
        backbone.trunk.cls_token.requires_grad_(False)
        backbone.trunk.norm.requires_grad_(False)
        attend_in_windows(
            backbone,
            window=shape.window,
            global_blocks=shape.global_blocks,
            cells=-(-padded_side(shape) // backbone.patch_size),
        )
        self._levels = [f"simfp_{number}" for number, _ in enumerate(FACTORS, start=2)]
        for name, factor in zip(self._levels, FACTORS, strict=True):
            width = round(backbone.width / max(factor, 1))
            self.add_module(
                name,
                nn.Sequential(
                    *rescaling(backbone.width, factor, LayerNorm2d, halve=True),
                    NormedConvolution(width, shape.channels, 1),
                    NormedConvolution(shape.channels, shape.channels, 3),
                ),
            )

    def last_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to the map that the pyramid is made of, (B, C, S, S)."""
        backbone = self._backbone[0]
        rows, columns = (-(-side // backbone.patch_size) for side in images.shape[2:])
        patches, positions = backbone.embed(images)
        grid = self.net.norm_pre(patches + positions[:, 1:]).unflatten(1, (rows, columns))
        values: Tensor = self.net.blocks(grid).permute(0, 3, 1, 2)
        return values

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to maps "0" to "3", the largest first, and "pool", half of the smallest."""
        values = self.last_map(images)
        maps = {str(number): getattr(self, name)(values) for number, name in enumerate(self._levels)}
        maps["pool"] = functional.max_pool2d(maps["3"], kernel_size=1, stride=2)
        return maps


def padded_side(shape: ViTDetShape) -> int:
    """Side of the squares that images are padded to, pixels."""
    return -(-shape.long_side // PADDING) * PADDING


def build_vitdet(
    backbone: Backbone, shape: ViTDetShape, *, drop_path: float, classes: int, masks: bool
) -> nn.Module:
    """Faster or Mask R-CNN on a plain ViT: two convolutions before the proposals, LayerNorm in the heads.

    Args:
        backbone: a plain ViT, changed in place.
        shape: sizes.
        drop_path: at the last block.
        classes: K, without background.
        masks: also predict instance masks.

    Raises:
        UserError: for another backbone, or patches whose side is no power of two.
    """
    if not isinstance(backbone, ViTBackbone):
        raise UserError(
            "ViTDet needs a plain Vision Transformer, such as vit_small_patch16_224; a ResNet or another "
            "pyramid takes --protocol detect-small or one of coco-fpn-*"
        )
    if backbone.patch_size not in PATCHES:
        raise UserError(
            f"ViTDet needs patches of 4, 8, 16 or 32 pixels, not {backbone.patch_size}; --stem patch16 "
            "resamples the patch embedding"
        )
    return rcnn_on_levels(
        SimpleFeaturePyramid(backbone, shape, drop_path),
        shape,
        classes,
        norm=LayerNorm2d,
        masks=masks,
        rpn_convolutions=2,
        common={**shared_arguments(shape), "size_divisible": padded_side(shape)},
    )

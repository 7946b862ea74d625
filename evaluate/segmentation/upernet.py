"""UPerNet: a pyramid of four maps, pooled context on the smallest, lateral and top-down joins, one head.

Xiao et al., ECCV 2018 (arXiv 1807.10221), as BEiT and MAE put it on a plain ViT: the maps of four blocks,
rescaled to strides 4, 8, 16 and 32. The names of neck, head and auxiliary head are mmsegmentation's.
Shape legend: B images, C channels, K classes, H and W pixels, S map cells per side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...common.errors import UserError
from ...models.backbones.base import Backbone
from ...models.backbones.vit import ViTBackbone
from ...models.map_scales import FACTORS, rescaling
from ...models.preprocess import normalize
from ...pretrain.methods.base import Output
from ..batches import TaskBatch
from .models import pixel_loss
from .protocols import UPerNetProtocol

PYRAMID = ("layer1", "layer2", "layer3", "layer4")
DEPTHS = (1 / 3, 1 / 2, 2 / 3, 1.0)  # of a ViT's blocks: BEiT's and MAE's 4, 6, 8, 12 and 8, 12, 16, 24
POOLS = (1, 2, 3, 6)  # cells per side of the pooled context


def conv_block(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU under mmsegmentation's names."""
    parts: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)),
        ("bn", nn.BatchNorm2d(outputs)),
        ("activate", nn.ReLU(inplace=True)),
    ]
    return nn.Sequential(OrderedDict(parts))


def enlarge(values: Tensor, like: Tensor) -> Tensor:
    """Bilinear to the size of another map."""
    return functional.interpolate(values, size=like.shape[-2:], mode="bilinear", align_corners=False)


class MapRescaler(nn.Module):
    """Four maps of one stride to strides of a quarter, a half, one and two of it (mmsegmentation's neck)."""

    def __init__(self, channels: int) -> None:
        """Build for maps of C channels, which stay."""
        super().__init__()
        self.upsample_4x, self.upsample_2x, self.same, self.downsample_2x = (
            rescaling(channels, factor, nn.BatchNorm2d, halve=False) for factor in FACTORS
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, S, S) each to (B, C, 4 S, 4 S), 2 S, S and S / 2."""
        steps = (self.upsample_4x, self.upsample_2x, self.same, self.downsample_2x)
        return [step(values) for step, values in zip(steps, maps, strict=True)]


class UPerHead(nn.Module):
    """From four maps, the largest first, to logits of the largest's size."""

    def __init__(self, inputs: Sequence[int], width: int, classes: int) -> None:
        """Build for maps of these channels; `width` is that of every layer inside."""
        super().__init__()
        *larger, smallest = inputs
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), conv_block(smallest, width, 1)) for side in POOLS
        )
        self.bottleneck = conv_block(smallest + len(POOLS) * width, width, 3)
        self.lateral_convs = nn.ModuleList(conv_block(channels, width, 1) for channels in larger)
        self.fpn_convs = nn.ModuleList(conv_block(width, width, 3) for _ in larger)
        self.fpn_bottleneck = conv_block(len(inputs) * width, width, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = pixel_classifier(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C, S, S) each to logits (B, K, S, S)."""
        *larger, smallest = maps
        context = [enlarge(pool(smallest), smallest) for pool in self.psp_modules]
        joined: list[Tensor] = [self.bottleneck(torch.cat([smallest, *context], dim=1))]
        for lateral, values in zip(reversed(self.lateral_convs), reversed(larger), strict=True):
            side = lateral(values)
            joined.insert(0, side + enlarge(joined[0], side))
        levels = [conv(values) for conv, values in zip(self.fpn_convs, joined[:-1], strict=True)]
        levels = [levels[0], *(enlarge(values, levels[0]) for values in (*levels[1:], joined[-1]))]
        logits: Tensor = self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(levels, dim=1))))
        return logits


class FCNHead(nn.Module):
    """A 3x3 convolution and a classifier on one map: the auxiliary head of the training."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        """Build for a map of C channels."""
        super().__init__()
        self.convs = nn.Sequential(conv_block(channels, width, 3))
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = pixel_classifier(width, classes)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, S, S) to logits (B, K, S, S)."""
        logits: Tensor = self.conv_seg(self.dropout(self.convs(values)))
        return logits


def pixel_classifier(width: int, classes: int) -> nn.Conv2d:
    """1x1 convolution, its weights from N(0, .01) as mmsegmentation draws them."""
    classifier = nn.Conv2d(width, classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
    return classifier


class UPerNet(nn.Module):
    """A backbone with UPerNet's head, fine-tuned as a whole."""

    def __init__(self, backbone: Backbone, protocol: UPerNetProtocol, *, classes: int) -> None:
        """Choose the maps and build the heads.

        Raises:
            UserError: for maps that there are not, or a backbone without a pyramid that is no ViT.
        """
        super().__init__()
        self.maps = choose_maps(backbone, protocol.maps)
        self.backbone, self.protocol = backbone, protocol
        freeze_behind(backbone, self.maps)
        self.neck: MapRescaler | None = None
        if isinstance(backbone, ViTBackbone):
            if protocol.crop < 2 * backbone.patch_size:
                raise UserError(
                    f"a crop of {protocol.crop} pixels is under two patches of {backbone.patch_size}; raise "
                    "--set crop=N, or take smaller patches (--stem patch8)"
                )
            backbone.prepare_fine_tuning(protocol.drop_path)
            inputs = [backbone.width] * len(self.maps)
            self.neck = MapRescaler(backbone.width)
        else:
            inputs = [backbone.channels[name] for name in self.maps]
        self.decode_head = UPerHead(inputs, protocol.channels or inputs[-1], classes)
        self.auxiliary_head = FCNHead(inputs[2], protocol.auxiliary_channels, classes)

    def levels(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images to four maps, the largest first."""
        found = self.backbone.maps(images, self.maps)
        maps = [found[name] for name in self.maps]  # one may be read several times
        return maps if self.neck is None else self.neck(maps)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to logits (B, K, S, S)."""
        logits: Tensor = self.decode_head(self.levels(images))
        return logits

    def forward(self, batch: TaskBatch) -> Output:
        """Loss of a batch of (images (B, 3, H, W) uint8, labels (B, H, W))."""
        images, labels = batch.values
        levels = self.levels(normalize(images))
        loss_terms = {
            "head": pixel_loss(self.decode_head(levels), labels),
            "auxiliary": pixel_loss(self.auxiliary_head(levels[2]), labels),
        }
        loss = loss_terms["head"] + self.protocol.auxiliary * loss_terms["auxiliary"]
        return Output(loss=loss, loss_terms={name: part.detach() for name, part in loss_terms.items()})


def choose_maps(backbone: Backbone, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The four maps that are read: those that are named, else the pyramid or, of a ViT, evenly deep blocks.

    Raises:
        UserError: for the name of no map, or a backbone that has neither.
    """
    if names is not None:
        backbone.check_maps(names)
        return names
    if isinstance(backbone, ViTBackbone):
        depth = len(backbone.trunk.blocks)
        return tuple(f"block{max(1, round(part * depth))}" for part in DEPTHS)
    if not backbone.has_pyramid:
        raise UserError(
            "UPerNet needs a plain ViT, a ResNet, or another backbone with maps layer1 to layer4 for images "
            "of any size; measure this one with seg-probe"
        )
    return PYRAMID


def freeze_behind(backbone: Backbone, maps: Sequence[str]) -> None:
    """Train nothing behind the last map: it would get no gradient, for which several processes would wait."""
    stages = backbone.stages()
    ends = {"norm" if name == "patches" else name for name in maps}
    if not ends <= stages.keys():
        return  # a user's own backbone, whose stages are not its maps
    last = max(list(stages).index(name) for name in ends)
    for part in (part for parts in list(stages.values())[last + 1 :] for part in parts):
        part.requires_grad_(False)


def sliding_logits(
    logits_of: Callable[[Tensor], Tensor], images: Tensor, *, crop: int, stride: int
) -> Tensor:
    """Mean logits of overlapping windows, as mmsegmentation's `slide` mode takes it.

    Args:
        logits_of: (B, 3, crop, crop) to logits (B, K, S, S), which are enlarged to the window's pixels.
        images: (B, 3, H, W), normalised; sides under the crop are padded with 0, the mean colour.
        crop: side of a window, pixels.
        stride: from one window to the next, pixels, at most the crop; the last window ends with the image.

    Returns:
        (B, K, H, W).
    """
    height, width = images.shape[2:]
    images = functional.pad(images, (0, max(0, crop - width), 0, max(0, crop - height)))
    total, counted = images.new_zeros(()), images.new_zeros(1, 1, *images.shape[2:])
    for top in _window_starts(images.shape[2], crop, stride):
        for left in _window_starts(images.shape[3], crop, stride):
            rows, columns = slice(top, top + crop), slice(left, left + crop)
            window = images[:, :, rows, columns]
            logits = enlarge(logits_of(window).float(), window)
            if total.dim() == 0:
                total = logits.new_zeros(*logits.shape[:2], *images.shape[2:])
            total[:, :, rows, columns] += logits
            counted[:, :, rows, columns] += 1
    return (total / counted)[:, :, :height, :width]


def _window_starts(side: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along a side of at least `crop` pixels."""
    steps = -(-(side - crop) // stride)
    return [min(number * stride, side - crop) for number in range(steps + 1)]

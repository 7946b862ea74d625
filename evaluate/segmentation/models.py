"""Networks of the segmentation protocols: the probe's 1x1 convolution and the two fine-tuned FCNs.

Shape legend: B images, C channels, K classes, H and W pixels, S map cells per side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...common.errors import UserError
from ...engine.distributed import reduce_sum, world_size
from ...models.backbones.base import Backbone
from ...models.backbones.resnet import ResNetBackbone
from ...models.preprocess import normalize
from ...pretrain.methods.base import Output
from ..batches import TaskBatch
from .data import IGNORE


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the pixels that count, logits (B, K, S, S) enlarged bilinearly to labels (B, H, W).

    A batch without any counted pixel gives 0 instead of 0 / 0. With several processes the mean over their
    losses is that of the whole batch, wherever its void pixels lie.
    """
    enlarged = functional.interpolate(
        logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False
    )
    summed = functional.cross_entropy(enlarged, labels.long(), ignore_index=IGNORE, reduction="sum")
    counted = reduce_sum((labels != IGNORE).sum())
    return summed * world_size() / counted.clamp(min=1)


def joined_maps(backbone: Backbone, images: Tensor, names: Sequence[str]) -> Tensor:
    """The named maps of normalised images (B, 3, H, W), channels one after the other: (B, sum of C, S, S).

    Smaller maps are enlarged bilinearly to the one of most cells. The maps keep their scales, which differ:
    whoever classifies them standardises each channel.

    Raises:
        UserError: for the name of no map.
    """
    maps = [values.float() for values in backbone.maps(images, names).values()]
    rows, columns = max(values.shape[-2:] for values in maps)
    return torch.cat(
        [
            functional.interpolate(values, size=(rows, columns), mode="bilinear", align_corners=False)
            if values.shape[-2:] != (rows, columns)
            else values
            for values in maps
        ],
        dim=1,
    )


class SegProbe(nn.Module):
    """`seg-probe`: a 1x1 convolution on the frozen map, each channel standardised over the training set.

    The standardisation could be undone by the convolution itself; it makes one learning rate fit backbones
    whose maps differ in scale.
    """

    def __init__(self, mean: Tensor, std: Tensor, classes: int) -> None:
        """Take the training maps' mean and deviation, (C,) each; starts at equal class odds."""
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std.clamp(min=1e-6)[:, None, None])
        self.classifier = nn.Conv2d(len(mean), classes, 1)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def logits(self, maps: Tensor) -> Tensor:
        """(B, C, S, S) maps to (B, K, S, S)."""
        logits: Tensor = self.classifier((maps.float() - self.mean) / self.std)  # type: ignore[operator]
        return logits

    def forward(self, batch: TaskBatch) -> Output:
        """Loss of a batch of (maps (B, C, S, S), labels (B, H, W))."""
        maps, labels = batch.values
        return Output(loss=pixel_loss(self.logits(maps), labels))


class DilatedMaps(nn.Module):
    """A backbone brought to a smaller output stride by dilation; gives `layer3` and `layer4`."""

    def __init__(self, backbone: Backbone, output_stride: int) -> None:
        """Replace strides by dilation from the last layer backwards until the stride is reached.

        Raises:
            UserError: if the backbone has no such maps or no such stride.
        """
        super().__init__()
        if not backbone.has_pyramid:
            raise UserError(
                "the fine-tuned FCNs need a ResNet, or another backbone with maps layer1 to layer4 for "
                "images of any size; a ViT can be measured with seg-probe"
            )
        if isinstance(backbone, ResNetBackbone):
            self.backbone: Backbone = backbone
            self.stride = dilate(backbone, output_stride)
        else:
            self.backbone = backbone.at_stride(output_stride)
            self.stride = self.backbone.stride

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to maps by name."""
        maps: dict[str, Tensor] = self.backbone(images)
        return maps


def dilate(backbone: ResNetBackbone, output_stride: int) -> int:
    """Lower the stride of `layer4`, then of `layer3`, to 1 until the last map's stride is `output_stride`.

    Every 3x3 convolution from there on is dilated so that it sees what it saw before; the first block of a
    layer keeps the dilation of the layer before it, as in torchvision's `replace_stride_with_dilation` (which
    refuses the basic blocks of ResNet-18 and -34).

    Returns:
        The stride reached; larger strides than asked for do not occur, smaller ones stay.
    """
    stride, lowered = backbone.stride, []
    for name in ("layer4", "layer3"):
        if stride > output_stride:
            stride //= 2
            lowered.append(name)
    rate = 1
    for name in ("layer3", "layer4"):
        before = rate
        if name in lowered:
            rate *= 2
        for number, block in enumerate(getattr(backbone.trunk, name)):
            for part in block.modules():
                if isinstance(part, nn.Conv2d):
                    if name in lowered:
                        part.stride = (1, 1)
                    if part.kernel_size == (3, 3):
                        spread = before if number == 0 else rate
                        part.dilation = part.padding = (spread, spread)
    backbone.stride = stride
    return stride


def conv_block(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class DenseCLHead(nn.Module):
    """mmsegmentation's FCNHead as DenseCL uses it: two 3x3, the input concatenated, one more 3x3, 1x1."""

    def __init__(self, channels: int, classes: int) -> None:
        """Width is a quarter of the map's, 512 for a ResNet-50."""
        super().__init__()
        width = channels // 4
        self.convs = nn.Sequential(conv_block(channels, width), conv_block(width, width))
        self.joined = conv_block(channels + width, width)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, S, S) to logits (B, K, S, S)."""
        logits: Tensor = self.classifier(self.joined(torch.cat([values, self.convs(values)], dim=1)))
        return logits


def moco_head(channels: int, classes: int) -> nn.Sequential:
    """Two 3x3 of 256 channels with dilation 6, BatchNorm and ReLU, then 1x1 (MoCo, arXiv 1911.05722, A.4)."""
    return nn.Sequential(
        conv_block(channels, 256, dilation=6), conv_block(256, 256, dilation=6), nn.Conv2d(256, classes, 1)
    )


class FcnSegmenter(nn.Module):
    """A fine-tuned FCN: dilated backbone, head on `layer4`; DenseCL's protocol has one on `layer3` too."""

    def __init__(
        self, backbone: Backbone, *, classes: int, head: str, output_stride: int, auxiliary: float
    ) -> None:
        """Build the heads; `auxiliary` is the weight of the second head's loss, 0 for none."""
        super().__init__()
        self.maps = DilatedMaps(backbone, output_stride)
        self.auxiliary_weight = auxiliary
        last, third = backbone.channels["layer4"], backbone.channels["layer3"]
        self.head = DenseCLHead(last, classes) if head == "densecl" else moco_head(last, classes)
        self.auxiliary = (
            nn.Sequential(conv_block(third, third // 4), nn.Dropout2d(0.1), nn.Conv2d(third // 4, classes, 1))
            if auxiliary
            else None
        )

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to logits (B, K, S, S)."""
        logits: Tensor = self.head(self.maps(images)["layer4"])
        return logits

    def forward(self, batch: TaskBatch) -> Output:
        """Loss of a batch of (images (B, 3, H, W) uint8, labels (B, H, W))."""
        images, labels = batch.values
        maps = self.maps(normalize(images))
        loss_terms = {"head": pixel_loss(self.head(maps["layer4"]), labels)}
        loss = loss_terms["head"]
        if self.auxiliary is not None:
            loss_terms["auxiliary"] = pixel_loss(self.auxiliary(maps["layer3"]), labels)
            loss = loss + self.auxiliary_weight * loss_terms["auxiliary"]
        return Output(loss=loss, loss_terms={name: part.detach() for name, part in loss_terms.items()})

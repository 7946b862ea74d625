"""The network that learns from first masks: an encoder of halving stages and a decoder with skips.

Shape legend: B images, S side of the input, C channels, s side of a map.

A U-Net (Ronneberger et al., MICCAI 2015) that joins maps by addition, as a feature pyramid does (Lin et al.,
CVPR 2017): the U-Net's own convolutions over maps side by side cost half as much again and drew no better
masks, in folders of one kind or of several (docs/masks-tried.md). From scratch the network has 1.2 million
parameters at width 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...common.imagenet import MEAN, STD
from ...models.backbones.base import Backbone

STAGES = (1, 2, 4, 8, 8)  # channels of each halving stage, in widths
DECODER_CHANNELS = 128  # of a decoder stage at most: a backbone's maps are far wider


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def projection(channels_in: int, channels_out: int) -> nn.Sequential:
    """A 1 x 1 convolution with BatchNorm."""
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out))


class StagesEncoder(nn.Module):
    """Five halving stages, from scratch."""

    fixed_size = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = [width * factor for factor in STAGES]
        inputs = [3, *self.channels[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(convolution(before, after, stride=2), convolution(after, after))
            for before, after in zip(inputs, self.channels, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) to maps (B, C, s, s), the finest (s = S / 2) first."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return maps


class BackboneEncoder(nn.Module):
    """A pretrained backbone's maps of more than one cell."""

    def __init__(self, backbone: Backbone, arch: str) -> None:
        super().__init__()
        self.backbone, self.arch, self.fixed_size = backbone, arch, backbone.fixed_size
        self.names = [name for name in backbone.channels if name != "class"]
        self.channels = [backbone.channels[name] for name in self.names]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) to maps (B, C, s, s), the finest first."""
        maps = self.backbone(images)
        return [maps[name] for name in self.names]


class DecoderStage(nn.Module):
    """Joins a map of the encoder with the coarser one from below."""

    def __init__(self, skip: int, below: int, out: int) -> None:
        super().__init__()
        self.from_skip, self.from_below = projection(skip, out), projection(below, out)
        self.smooth = nn.Sequential(convolution(out, out), convolution(out, out))

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """(B, C, s, s) and a coarser map to (B, C', s, s)."""
        joined = self.from_skip(skip) + _enlarged(self.from_below(below), skip.shape[2:])
        smoothed: Tensor = self.smooth(functional.relu(joined))
        return smoothed


class ForegroundNetwork(nn.Module):
    """Says of every pixel how likely it is foreground."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: StagesEncoder | BackboneEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        channels = [min(number, DECODER_CHANNELS) for number in encoder.channels]
        deepest = encoder.channels[-1]
        self.context = nn.Linear(deepest, deepest)  # what the whole image shows, to every cell
        self.top = convolution(deepest, channels[-1])
        self.decoders = nn.ModuleList(
            DecoderStage(skip, below, out)
            for skip, below, out in zip(
                encoder.channels[-2::-1], channels[:0:-1], channels[-2::-1], strict=True
            )
        )
        self.head = nn.Conv2d(channels[0], 1, 1)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the foreground.

        Args:
            images: (B, 3, S, S) RGB in [0, 1].

        Returns:
            (B, 1, S, S).
        """
        maps = self.encoder((images - self.mean) / self.std)
        values = maps[-1]
        values = self.top(values + self.context(values.mean((2, 3)))[:, :, None, None])
        for decoder, skip in zip(self.decoders, maps[-2::-1], strict=True):
            values = decoder(skip, values)
        return _enlarged(self.head(values), images.shape[2:])


def _enlarged(values: Tensor, size: torch.Size) -> Tensor:
    """A map at another size."""
    if values.shape[2:] == size:
        return values
    return functional.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)

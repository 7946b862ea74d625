"""The network that learns from first masks: an encoder of halving stages and a decoder with skips.

Shape legend: B images, S side of the input, C channels, s side of a map.

After O. Ronneberger et al., "U-Net", MICCAI 2015; from scratch it has 1.7 million parameters at width 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...common.imagenet import MEAN, STD
from ...models.backbones.base import Backbone

STAGES = (1, 2, 4, 8, 8)  # channels of each halving stage, in widths
DECODER_CHANNELS = 128  # of a decoder stage at most: a backbone's maps are far wider


def convolutions(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Two 3 x 3 convolutions with BatchNorm and ReLU; the first may halve the map."""
    layers: list[nn.Module] = []
    for number, channels in enumerate((channels_in, channels_out)):
        layers += [
            nn.Conv2d(channels, channels_out, 3, stride if number == 0 else 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class StagesEncoder(nn.Module):
    """Five halving stages, from scratch."""

    fixed_size = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = [width * factor for factor in STAGES]
        inputs = [3, *self.channels[:-1]]
        self.stages = nn.ModuleList(
            convolutions(before, after, stride=2) for before, after in zip(inputs, self.channels, strict=True)
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


class ForegroundNetwork(nn.Module):
    """Says of every pixel how likely it is foreground."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: StagesEncoder | BackboneEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        channels = [min(number, DECODER_CHANNELS) for number in encoder.channels]
        deepest = encoder.channels[-1]
        self.context = nn.Linear(deepest, channels[-1])  # what the whole image shows, to every cell
        self.top = convolutions(deepest + channels[-1], channels[-1])
        self.decoders = nn.ModuleList(
            convolutions(skip + below, out)
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
        context = functional.relu(self.context(values.mean((2, 3))))[:, :, None, None]
        values = self.top(torch.cat([values, context.expand(-1, -1, *values.shape[2:])], dim=1))
        for decoder, skip in zip(self.decoders, maps[-2::-1], strict=True):
            values = _enlarged(values, skip.shape[2:])
            values = decoder(torch.cat([skip, values], dim=1))
        return _enlarged(self.head(values), images.shape[2:])


def _enlarged(values: Tensor, size: torch.Size) -> Tensor:
    """A map at another size."""
    if values.shape[2:] == size:
        return values
    return functional.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)

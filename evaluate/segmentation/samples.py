"""Images with labels as the segmentation protocols show them to a network.

Shape legend: H and W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as pixels

from ...common.imagenet import MEAN
from .data import IGNORE, LabelledPixels
from .protocols import FineTunedProtocol, ProbeProtocol, UPerNetProtocol

MEAN_COLOUR = tuple(round(255 * value) for value in MEAN)  # normalises to about 0


class ResizedSamples:
    """Images at one size, labels every `label_stride` pixels of it."""

    def __init__(self, data: LabelledPixels, protocol: ProbeProtocol) -> None:
        """Keep the list; images are read when asked for."""
        self.data, self.protocol = data, protocol

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data)

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(3, H, W) uint8 image, and its labels, uint8, `label_stride` times smaller."""
        image, labels = self.data.read(index)
        size = [self.protocol.height, self.protocol.width]
        small = [side // self.protocol.label_stride for side in size]
        reduced = functional.interpolate(labels[None, None].float(), size=small, mode="nearest-exact")
        return pixels.resize(image, size, antialias=True), reduced[0, 0].to(torch.uint8)


class SegmentationCrops:
    """Training samples of fine-tuned networks: random resize, crop (padded with void), flip."""

    def __init__(self, data: LabelledPixels, protocol: FineTunedProtocol) -> None:
        """Keep the list; images are read when asked for."""
        self.data, self.protocol = data, protocol
        self.side = protocol.side if isinstance(protocol, UPerNetProtocol) else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data)

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(3, crop, crop) uint8 and (crop, crop) uint8."""
        image, labels = self.data.read(index)
        scale, top, left, flip = generator.random(4)
        lower, upper = self.protocol.scale
        factor = lower + (upper - lower) * scale
        if self.side is not None:
            factor *= self.side / min(labels.shape)
        size = [max(1, round(side * factor)) for side in labels.shape]
        image = pixels.resize(image, size, antialias=True)
        labels = functional.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0]
        crop = self.protocol.crop
        bottom, right = (max(0, crop - side) for side in size)
        image = torch.stack(
            [
                functional.pad(plane, (0, right, 0, bottom), value=grey)
                for plane, grey in zip(image, MEAN_COLOUR, strict=True)
            ]
        )
        labels = functional.pad(labels, (0, right, 0, bottom), value=IGNORE).to(torch.uint8)
        y = int(top * (image.shape[1] - crop + 1))
        x = int(left * (image.shape[2] - crop + 1))
        image, labels = image[:, y : y + crop, x : x + crop], labels[y : y + crop, x : x + crop]
        return (image.flip(2), labels.flip(1)) if flip < 0.5 else (image, labels)

"""Features of labelled images: the mean over the cells of a backbone's map.

For a ViT that is the mean patch token of the online encoder, which is how SiameseIM and MAE are evaluated.
Shape legend: N images, C channels, S side of the crop in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...data.images.class_folders import LabelledImages
from ...data.images.decode import read_image
from ...models.backbones.base import Backbone
from ..batches import ordered_batches
from ..transforms import as_tensor, centre_crop, normalise, random_crop


@dataclass(frozen=True)
class Features:
    """Pooled features of N images, in the order of their list."""

    values: Tensor  # (N, C) float32 on the CPU
    labels: Tensor  # (N,) int64


class CropSamples:
    """Labelled images as crops: the centre for measuring, random resized crops for training."""

    def __init__(self, images: LabelledImages, *, size: int, resize: int, random: bool) -> None:
        """Keep the list; images are read when asked for."""
        self.images, self.size, self.resize, self.random = images, size, resize, random

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, int]:
        """(3, S, S) uint8 crop and class number."""
        path = self.images.root / self.images.paths[index]
        # random crops may cut a small part, so they read the full picture
        image = as_tensor(read_image(path, reduce_to=None if self.random else self.resize))
        label = self.images.labels[index]
        if self.random:
            return random_crop(image, generator, size=self.size), label
        return centre_crop(image, resize=self.resize, crop=self.size), label


def default_resize(image_size: int) -> int:
    """Short side before the centre crop: 256 for 224, in the same ratio for other sizes."""
    return round(image_size * 256 / 224)


def pooled(backbone: Backbone, images: Tensor) -> Tensor:
    """Mean over the cells of the last map, (B, C), of normalised images (B, 3, S, S)."""
    maps: Tensor = backbone(images)[backbone.last]
    return maps.mean(dim=(2, 3))


def extract_features(
    backbone: Backbone,
    images: LabelledImages,
    *,
    image_size: int,
    resize: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Features:
    """Pooled features of the centre crops, backbone in eval mode.

    Args:
        backbone: moved to `device` and set to eval mode.
        images: N images.
        image_size: side of the crop, pixels.
        resize: short side before the crop, pixels; None takes 256 / 224 of the crop.
        batch_size, workers, device: how it is computed; the result does not depend on them beyond rounding.
    """
    samples = CropSamples(images, size=image_size, resize=resize or default_resize(image_size), random=False)
    backbone.to(device).eval()
    values, labels = [], []
    with torch.inference_mode():
        for crops, numbers in ordered_batches(samples, batch_size=batch_size, workers=workers, device=device):
            values.append(pooled(backbone, normalise(crops)).float().cpu())
            labels.append(numbers.cpu())
    return Features(torch.cat(values), torch.cat(labels))

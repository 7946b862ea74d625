"""Random resized crops of labelled images, for the protocols that train on images.

Shape legend: C channels, H and W pixels, S side of the crop in pixels.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional

from ...data.geometry import sample_geometry
from ...data.images.class_folders import LabelledImages
from ...data.images.decode import read_image
from ...data.images.inputs import RGB, Inputs
from ...models.preprocess import as_tensor


class RandomCrops:
    """Labelled images as random resized crops, half of them flipped."""

    def __init__(self, images: LabelledImages, image_size: int, inputs: Inputs = RGB) -> None:
        """Keep the list; images are read when asked for, in full, for a crop may be a small part."""
        self.images, self.image_size, self.inputs = images, image_size, inputs

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, int]:
        """(C, S, S) uint8 crop and class number."""
        path = self.images.root / self.images.paths[index]
        image = as_tensor(read_image(path, reader=self.inputs.reader))
        return random_crop(image, generator, size=self.image_size), self.images.labels[index]


def random_crop(
    image: Tensor, generator: np.random.Generator, *, size: int, scale: tuple[float, float] = (0.08, 1.0)
) -> Tensor:
    """Random resized crop and horizontal flip, as ImageNet classifiers are trained.

    Args:
        image: (C, H, W) uint8.
        generator: of this sample; all draws come from it.
        size: S.
        scale: least and largest part of the image's area.

    Returns:
        (C, S, S) uint8.
    """
    height, width = image.shape[1:]
    view = sample_geometry(generator, (height, width), scale=scale)
    cropped: Tensor = functional.resized_crop(
        image, int(view.top), int(view.left), int(view.height), int(view.width), [size, size], antialias=True
    )
    return cropped.flip(2) if view.hflip else cropped

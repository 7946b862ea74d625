"""Crops and normalisation of labelled images; every random draw comes from the sample's own generator.

Shape legend: B images, H and W pixels, S side of the crop in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import InterpolationMode

from ..data.geometry import sample_geometry
from ..models.knn import IMAGENET_MEAN, IMAGENET_STD


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to float32 with ImageNet's mean and deviation, on the tensor's device."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images.device)[:, None, None]
    return (images.float() / 255 - mean) / std


def centre_crop(image: Tensor, *, resize: int, crop: int) -> Tensor:
    """Resize the short side to `resize` pixels (bicubic, antialiased), cut the centre: (3, S, S) uint8."""
    resized = functional.resize(image, [resize], interpolation=InterpolationMode.BICUBIC, antialias=True)
    cut: Tensor = functional.center_crop(resized, [crop, crop])
    return cut


def random_crop(
    image: Tensor, generator: np.random.Generator, *, size: int, scale: tuple[float, float] = (0.08, 1.0)
) -> Tensor:
    """Random resized crop and horizontal flip, as ImageNet classifiers are trained: (3, S, S) uint8."""
    height, width = image.shape[1:]
    view = sample_geometry(generator, (height, width), scale=scale)
    cropped: Tensor = functional.resized_crop(
        image, int(view.top), int(view.left), int(view.height), int(view.width), [size, size], antialias=True
    )
    return cropped.flip(2) if view.hflip else cropped

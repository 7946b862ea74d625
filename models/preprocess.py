"""From a decoded picture to what a backbone reads when it is measured: centre crop, ImageNet's normalisation.

Shape legend: B images, H and W pixels, S side of the crop in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import InterpolationMode

from ..common.imagenet import MEAN, STD


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalize(images: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 to float32 with ImageNet's mean and deviation, on the tensor's device."""
    mean = torch.tensor(MEAN, device=images.device)[:, None, None]
    std = torch.tensor(STD, device=images.device)[:, None, None]
    return (images.float() / 255 - mean) / std


def default_resize(image_size: int) -> int:
    """Short side before the centre crop: 256 for 224, in the same ratio for other sizes."""
    return round(image_size * 256 / 224)


def centre_crop(image: Tensor, *, crop: int, resize: int | None = None) -> Tensor:
    """Resize the short side (bicubic, antialiased), cut the centre.

    Args:
        image: (3, H, W) uint8.
        crop: S, pixels.
        resize: short side before the crop, pixels; None takes `default_resize`.

    Returns:
        (3, S, S) uint8.
    """
    side = default_resize(crop) if resize is None else resize
    resized = functional.resize(image, [side], interpolation=InterpolationMode.BICUBIC, antialias=True)
    cut: Tensor = functional.center_crop(resized, [crop, crop])
    return cut

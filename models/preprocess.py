"""From a decoded picture to what a backbone reads when it is measured, and back: centre crop, normalisation.

Shape legend: B images, C channels (3 of photographs), H and W pixels, S side of the crop in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import InterpolationMode

from ..common.types import Pixels
from ..data.images.inputs import RGB, Inputs


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, C) uint8 to (C, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalize(images: Tensor, inputs: Inputs = RGB) -> Tensor:
    """(..., C, H, W) uint8 to float32 with the channels' mean and deviation, on the tensor's device."""
    mean, std = _statistics(inputs, images)
    return (images.float() / 255 - mean) / std


def to_pixels(images: Tensor, inputs: Inputs = RGB) -> Pixels:
    """Undo the normalisation, to be looked at: (..., C, H, W) float to (..., H, W, 3) uint8.

    Of more than three channels the first three are shown, of fewer the first one, in grey.
    """
    values = images.detach().float().cpu()
    mean, std = _statistics(inputs, values)
    bytes_ = ((values * std + mean).clamp(0, 1) * 255).round().byte().movedim(-3, -1).numpy()
    pixels: Pixels = as_rgb(bytes_)
    return pixels


def as_rgb(pixels: Pixels) -> Pixels:
    """(..., C) channels as three that can be looked at: the first three, or the first one in grey."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)


def _statistics(inputs: Inputs, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation as (C, 1, 1)."""
    mean, std = (torch.tensor(numbers, device=like.device)[:, None, None] for numbers in inputs.statistics)
    return mean, std


def default_resize(image_size: int) -> int:
    """Short side before the centre crop: 256 for 224, in the same ratio for other sizes."""
    return round(image_size * 256 / 224)


def centre_crop(image: Tensor, *, crop: int, resize: int | None = None) -> Tensor:
    """Resize the short side (bicubic, antialiased), cut the centre.

    Args:
        image: (C, H, W) uint8.
        crop: S, pixels.
        resize: short side before the crop, pixels; None takes `default_resize`.

    Returns:
        (C, S, S) uint8.
    """
    side = default_resize(crop) if resize is None else resize
    resized = functional.resize(image, [side], interpolation=InterpolationMode.BICUBIC, antialias=True)
    cut: Tensor = functional.center_crop(resized, [crop, crop])
    return cut

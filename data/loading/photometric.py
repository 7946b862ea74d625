"""Photometric augmentation: drawn per sample by counter, applied to whole batches on the device.

The worker draws one row of numbers for each view (`draw_row`); `augment` applies the rows of a batch to uint8
views on the CPU or a GPU. Per sample the result agrees with torchvision's v2 functional operations on float
images to 1e-3 (tests/data/loading/test_photometric.py).
Order: colour jitter (brightness, contrast, saturation, hue in the row's own order), PIRL's extra operations,
grey, blur, solarize, normalise.

Brightness, contrast, blur, solarize, posterize, sharpness and autocontrast are of images with any number of
channels; saturation, hue and grey are of RGB (`without_colour`).

Shape legend: B images, C channels, S side in pixels, R columns of a row.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..images.inputs import RGB, Inputs
from .batch import Batch, JigsawPolicy, Needs, PhotometricPolicy, ViewPolicy

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma with torchvision's digits

# Columns of a row. Switches are 0 or 1; a sigma of 0 is no blur.
JITTER, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(6)
GREYED, SIGMA, SOLARIZE, EXTRA, BITS, SHARPNESS, THRESHOLD = range(6, 13)
COLUMNS = 13

# ORDER indexes this table; entries are 0 brightness, 1 contrast, 2 saturation, 3 hue
ORDERS = np.array(list(itertools.permutations(range(4))))
BLUR_SIDE = 224  # pixels; the views that a policy's blur_sigma speaks of

Row = npt.NDArray[np.float32]
AnyView = TypeVar("AnyView", ViewPolicy, JigsawPolicy)


def draw_row(generator: np.random.Generator, policy: PhotometricPolicy, side: int = BLUR_SIDE) -> Row:
    """Draw the parameters of one view.

    The generator is advanced by the same amount whatever the outcome.

    Args:
        generator: counter-based generator of this (seed, epoch, sample, view), purpose "photometric".
        policy: probabilities and strengths.
        side: of the view, pixels. The published widths of the blur are for 224 pixels and scale with the
            view; in pixels they would take all detail from a view of 64 (SimCLR's code scales its kernel).

    Returns:
        (R,) float32, columns as named at the top of this file.
    """
    draws = generator.random(14).tolist()
    row = [0.0] * COLUMNS  # plain floats: cheaper to set one by one than an array
    row[JITTER] = draws[0] < policy.jitter
    row[ORDER] = int(draws[1] * len(ORDERS))
    strengths = (policy.brightness, policy.contrast, policy.saturation)
    for column, draw, strength in zip((BRIGHTNESS, CONTRAST, SATURATION), draws[2:5], strengths, strict=True):
        low = max(0.0, 1 - strength)
        row[column] = low + draw * (1 + strength - low)
    row[HUE] = (2 * draws[5] - 1) * policy.hue
    row[GREYED] = draws[6] < policy.grey
    low, high = policy.blur_sigma
    row[SIGMA] = (low + draws[8] * (high - low)) * side / BLUR_SIDE if draws[7] < policy.blur else 0.0
    row[SOLARIZE] = draws[9] < policy.solarize
    # PIRL's four, all or none, with the ranges of VISSL's pil_photometric_transforms_lib.py
    row[EXTRA] = draws[10] < policy.pirl_extra
    row[BITS] = 4 + int(draws[11] * 5)
    row[SHARPNESS] = 0.1 + 1.8 * draws[12]
    row[THRESHOLD] = int(draws[13] * 257) / 255  # of 256 there is nothing to turn
    return np.array(row, np.float32)


def without_colour(needs: Needs, inputs: Inputs) -> tuple[Needs, list[str]]:
    """Switch off what assumes RGB where images are of other channels.

    Returns:
        The needs of such images, and the names of what some view of them would have drawn.
    """
    if inputs.in_channels == 3:
        return needs, []

    def plain(policy: AnyView) -> AnyView:
        found = policy.photometric
        jittered = found.jitter > 0
        drawn.extend(name for name in ("saturation", "hue") if jittered and getattr(found, name) > 0)
        drawn.extend(["grey"] if found.grey > 0 else [])
        return dataclasses.replace(policy, photometric=found.replace(saturation=0.0, hue=0.0, grey=0.0))

    drawn: list[str] = []
    views = tuple(plain(policy) for policy in needs.views)
    jigsaw = None if needs.jigsaw is None else plain(needs.jigsaw)
    return dataclasses.replace(needs, views=views, jigsaw=jigsaw), sorted(set(drawn))


def augment(batch: Batch, inputs: Inputs = RGB) -> Batch:
    """Apply the drawn rows to all views and patches, and normalise.

    Args:
        batch: uint8 `views` and `patches` on any device. The rows are read on the host: leave them there
            (`Loader` does), or each call waits for the device.
        inputs: whose mean and deviation normalise.

    Returns:
        The batch with float32 normalised views and patches; everything else as it was.
    """
    views = tuple(
        augment_images(view, rows, inputs) for view, rows in zip(batch.views, batch.photometric, strict=True)
    )
    patches = batch.patches
    if patches is not None and batch.patch_photometric is not None:
        flat = augment_images(patches.flatten(0, 1), batch.patch_photometric.flatten(0, 1), inputs)
        patches = flat.view(*patches.shape[:2], *flat.shape[1:])
    return dataclasses.replace(batch, views=views, patches=patches)


def augment_images(images: Tensor, rows: Tensor, inputs: Inputs = RGB) -> Tensor:
    """Apply one row to each image, and normalise.

    Args:
        images: (B, C, S, S) uint8, in any memory format.
        rows: (B, R) float32.
        inputs: whose mean and deviation normalise.

    Returns:
        (B, C, S, S) float32 on the device and in the memory format of `images`.
    """
    # an image may be both (one pixel, say); it then counts as planes
    last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        # as planes: operations on one colour at a time take 1.6 times as long on interleaved pixels (CPU)
        values = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        host = rows.cpu().numpy()
        _jitter(values, host)
        _extras(values, host)
        _update(values, host[:, GREYED] > 0, lambda part, _: _grey(part).expand_as(part))
        _blur(values, host)
        _update(values, host[:, SOLARIZE] > 0, lambda part, _: _solarize(part, 0.5))
        mean, std = (
            torch.tensor(numbers, device=values.device).view(1, -1, 1, 1) for numbers in inputs.statistics
        )
        values = values.sub_(mean).div_(std)
    return values.contiguous(memory_format=torch.channels_last) if last else values


def _update(
    values: Tensor,
    chosen: npt.NDArray[np.bool_],
    change: Callable[[Tensor, npt.NDArray[np.intp]], Tensor],
) -> None:
    """Replace the chosen images by `change(images, their positions)`, in place."""
    positions = np.flatnonzero(chosen)
    if len(positions):
        index = torch.from_numpy(positions).to(values.device, non_blocking=True)
        values.index_copy_(0, index, change(values.index_select(0, index), positions))


def _column(host: Row, positions: npt.NDArray[np.intp], column: int, like: Tensor) -> Tensor:
    """A row entry of some images as (b, 1, 1, 1) on the device."""
    numbers = torch.from_numpy(host[positions, column]).to(like.device, non_blocking=True)
    return numbers.view(-1, 1, 1, 1)


def _jitter(values: Tensor, host: Row) -> None:
    """Brightness, contrast, saturation and hue of each image in its own order, in place."""
    order = ORDERS[host[:, ORDER].astype(int)]
    operations = (_brightness, _contrast, _saturation, _hue)
    neutral = (1.0, 1.0, 1.0, 0.0)
    for place in range(4):
        for number, operation in enumerate(operations):
            column = BRIGHTNESS + number
            chosen = (
                (host[:, JITTER] > 0) & (order[:, place] == number) & (host[:, column] != neutral[number])
            )
            _update(
                values,
                chosen,
                lambda part, positions, operation=operation, column=column: operation(  # type: ignore[misc]
                    part, _column(host, positions, column, part)
                ),
            )


def _grey(images: Tensor) -> Tensor:
    """(B, 3, S, S) to luma (B, 1, S, S)."""
    red, green, blue = images.unbind(1)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).unsqueeze(1)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return images.mul_(factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(images) if images.shape[1] == 3 else images  # of other channels the plain mean
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(images)
    return images.mul_(factor).add_((1 - factor) * grey).clamp_(0, 1)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue; RGB to HSV and back (Foley & van Dam), as torchvision does it."""
    highest, lowest = images.amax(1), images.amin(1)
    spread = highest - lowest
    safe = torch.where(spread == 0, 1.0, spread)
    red, green, blue = images.unbind(1)
    sector = torch.where(
        highest == red,
        (green - blue) / safe,
        torch.where(highest == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = sector / 6 + shift.squeeze(1)
    # (5, 3, 1): the closed form of HSV to RGB, value - chroma * clamp(min(k, 4 - k), 0, 1)
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = torch.remainder(offset + hue * 6, 6)
        channels.append(highest - spread * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1).clamp_(0, 1)


def _solarize(images: Tensor, threshold: float | Tensor) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def _extras(values: Tensor, host: Row) -> None:
    """Posterize, sharpen, solarize and stretch the contrast of the chosen images, in place."""
    chosen = host[:, EXTRA] > 0
    for operation, column in ((_posterize, BITS), (_sharpness, SHARPNESS), (_solarize, THRESHOLD)):
        _update(
            values,
            chosen,
            lambda part, positions, operation=operation, column=column: operation(  # type: ignore[misc]
                part, _column(host, positions, column, part)
            ),
        )
    _update(values, chosen, lambda part, _: _autocontrast(part))


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    levels = 2.0**bits
    return torch.minimum((images * levels).floor_(), levels - 1) / levels


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a 3 x 3 smoothing of the inner pixels; the outermost pixels stay."""
    if min(images.shape[-2:]) <= 2:
        return images
    kernel = images.new_tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]).div_(13)
    channels = images.shape[1]
    smooth = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    inner = images[:, :, 1:-1, 1:-1]
    inner.add_((1 - factor) * (smooth - inner))
    return images.clamp_(0, 1)


def _autocontrast(images: Tensor) -> Tensor:
    lowest, highest = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    spread = highest - lowest
    stretched = (images - lowest) / torch.where(spread == 0, 1.0, spread)
    return torch.where(spread == 0, images, stretched).clamp_(0, 1)


def blur_radius(sigma: float, side: int) -> int:
    """Taps to each side of a Gaussian: 3 sigma (0.3 % is beyond), and what reflection allows."""
    return min(math.ceil(3 * sigma), side - 1)


def _blur(values: Tensor, host: Row) -> None:
    """Separable Gaussian of each image's own sigma, borders reflected, in place."""
    side = min(values.shape[-2:])

    def change(part: Tensor, positions: npt.NDArray[np.intp]) -> Tensor:
        kernels = _gaussian_kernels(host[positions, SIGMA], side)
        return _convolve(part, torch.from_numpy(kernels).to(part.device, non_blocking=True))

    _update(values, host[:, SIGMA] > 0, change)


def _gaussian_kernels(sigmas: Row, side: int) -> Row:
    """Weights of Gaussians of (b,) sigmas as (b, taps), each zero beyond its own `blur_radius`.

    So that an image's blur does not depend on the other images of its batch.
    """
    radii = np.array([blur_radius(float(sigma), side) for sigma in sigmas])
    offsets = np.arange(-radii.max(), radii.max() + 1)
    weights = np.exp(-0.5 * (offsets / sigmas[:, None].astype(np.float64)) ** 2)
    weights[np.abs(offsets) > radii[:, None]] = 0
    kernels: Row = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return kernels


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """(b, C, S, S) with (b, taps) along both axes, borders reflected."""
    count, channels, height, width = images.shape
    radius = kernels.shape[1] // 2
    weights = kernels.repeat_interleave(channels, 0)[:, None]
    flat = F.pad(images.reshape(1, count * channels, height, width), (radius,) * 4, mode="reflect")
    flat = F.conv2d(flat, weights[:, :, :, None], groups=count * channels)
    flat = F.conv2d(flat, weights[:, :, None, :], groups=count * channels)
    return flat.view(count, channels, height, width)

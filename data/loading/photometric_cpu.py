"""The photometric augmentation on the CPU: one compiled pass over each image, colour planes in cache.

Same rows, same order and same result as the tensor operations of photometric.py (which run on a GPU);
both are held to torchvision in tests/data/test_photometric.py. Images are shared among threads.

Shape legend: n pixels of an image, S side in pixels, B images, R columns of a row, K taps.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# every number that meets a pixel is float32: one float64 would double the work of the whole expression
_F = np.float32
_RED, _GREEN, _BLUE = _F(0.2989), _F(0.587), _F(0.114)
_ZERO, _ONE, _SIX = _F(0), _F(1), _F(6)
_compiled: Any = functools.partial(numba.njit, cache=True, nogil=True, fastmath={"contract", "nsz"})


def augment_on_cpu(
    images: NDArray[np.uint8], rows: Floats, orders: NDArray[np.int64], kernels: Floats, threads: int
) -> Floats:
    """Apply one row to each image, and normalise.

    Args:
        images: (B, S, S, 3) uint8, contiguous.
        rows: (B, R), columns as in photometric.py.
        orders: (24, 4) orders of the jitter operations.
        kernels: (B, K) Gaussian weights; not read where a row has no blur.
        threads: among which the images are shared.

    Returns:
        (B, S, S, 3) float32.
    """
    out = np.empty(images.shape, np.float32)
    if threads <= 1 or len(images) < 2:
        _augment(images, rows, orders, kernels, out)
        return out
    bounds = np.linspace(0, len(images), min(threads, len(images)) + 1).astype(int)
    with ThreadPoolExecutor(len(bounds) - 1) as pool:
        shares = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        list(pool.map(lambda at: _augment(images[at], rows[at], orders, kernels[at], out[at]), shares))
    return out


@_compiled
def _augment(images, rows, orders, kernels, out):  # type: ignore[no-untyped-def]
    count, height, width, _ = images.shape
    planes = np.empty((3, height * width), np.float32)
    spare = np.empty((3, height * width), np.float32)
    for at in range(count):
        row = rows[at]
        _load(images[at], planes)
        if row[0] > 0:
            for place in range(4):
                _jitter(planes, orders[int(row[1]), place], row)
        _extra(planes, spare, height, width, int(row[9]), row[10])
        if row[6] > 0:
            _grey(planes)
        if row[7] > 0:
            for channel in range(3):
                _blur(planes[channel], spare[channel], kernels[at], height, width)
        if row[8] > 0:
            _solarize(planes, _F(0.5))
        _store(planes, out[at])


@_compiled
def _load(image, planes):  # type: ignore[no-untyped-def]
    """Interleaved bytes to planes in [0, 1]."""
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                planes[channel, y * width + x] = _F(image[y, x, channel]) / _F(255)


@_compiled
def _store(planes, image):  # type: ignore[no-untyped-def]
    """Planes to interleaved pixels, normalised by ImageNet's mean and standard deviation."""
    height, width, _ = image.shape
    for y in range(height):
        for x in range(width):
            at = y * width + x
            image[y, x, 0] = (planes[0, at] - _F(0.485)) / _F(0.229)
            image[y, x, 1] = (planes[1, at] - _F(0.456)) / _F(0.224)
            image[y, x, 2] = (planes[2, at] - _F(0.406)) / _F(0.225)


@_compiled
def _unit(value):  # type: ignore[no-untyped-def]
    return min(max(value, _ZERO), _ONE)


@_compiled
def _jitter(planes, operation, row):  # type: ignore[no-untyped-def]
    """Brightness 0, contrast 1, saturation 2 or hue 3, in place."""
    red, green, blue = planes[0], planes[1], planes[2]
    factor = row[2 + operation]
    rest = _ONE - factor
    if operation == 0:
        for at in range(len(red)):
            red[at] = _unit(red[at] * factor)
            green[at] = _unit(green[at] * factor)
            blue[at] = _unit(blue[at] * factor)
    elif operation == 1:
        total = 0.0
        for at in range(len(red)):
            total += _RED * red[at] + _GREEN * green[at] + _BLUE * blue[at]
        shift = rest * _F(total / len(red))
        for at in range(len(red)):
            red[at] = _unit(red[at] * factor + shift)
            green[at] = _unit(green[at] * factor + shift)
            blue[at] = _unit(blue[at] * factor + shift)
    elif operation == 2:
        for at in range(len(red)):
            grey = rest * (_RED * red[at] + _GREEN * green[at] + _BLUE * blue[at])
            red[at] = _unit(red[at] * factor + grey)
            green[at] = _unit(green[at] * factor + grey)
            blue[at] = _unit(blue[at] * factor + grey)
    elif factor != 0:
        _hue(red, green, blue, factor * _SIX)


@_compiled
def _hue(red, green, blue, shift):  # type: ignore[no-untyped-def]
    """Turn the hue by `shift` sixths of the circle; RGB to HSV and back without a branch."""
    for at in range(len(red)):
        r, g, b = red[at], green[at], blue[at]
        highest = max(r, max(g, b))
        spread = highest - min(r, min(g, b))
        scale = _ONE / (spread if spread > 0 else _ONE)
        sector = _F(4) + (r - g) * scale
        sector = _F(2) + (b - r) * scale if highest == g else sector
        sector = (g - b) * scale if highest == r else sector
        sector += shift
        red[at] = _unit(highest - spread * _wave(sector + _F(5)))
        green[at] = _unit(highest - spread * _wave(sector + _F(3)))
        blue[at] = _unit(highest - spread * _wave(sector + _ONE))


@_compiled
def _wave(place):  # type: ignore[no-untyped-def]
    """How far a channel lies below the value, in chroma: clamp(min(k, 4 - k), 0, 1), k modulo 6."""
    place -= _SIX * np.floor(place / _SIX)
    return _unit(min(place, _F(4) - place))


@_compiled
def _grey(planes):  # type: ignore[no-untyped-def]
    for at in range(planes.shape[1]):
        grey = _RED * planes[0, at] + _GREEN * planes[1, at] + _BLUE * planes[2, at]
        planes[0, at] = grey
        planes[1, at] = grey
        planes[2, at] = grey


@_compiled
def _solarize(planes, threshold):  # type: ignore[no-untyped-def]
    for channel in range(3):
        plane = planes[channel]
        for at in range(len(plane)):
            plane[at] = _ONE - plane[at] if plane[at] >= threshold else plane[at]


@_compiled
def _extra(planes, spare, height, width, kind, strength):  # type: ignore[no-untyped-def]
    """PIRL's posterize 1, sharpness 2, solarize 3 or autocontrast 4, in place."""
    if kind == 1:
        levels = _F(2.0**strength)
        for channel in range(3):
            plane = planes[channel]
            for at in range(len(plane)):
                plane[at] = min(np.floor(plane[at] * levels), levels - _ONE) / levels
    elif kind == 2 and min(height, width) > 2:
        for channel in range(3):
            _sharpen(planes[channel], spare[channel], height, width, _ONE - strength)
    elif kind == 3:
        _solarize(planes, strength)
    elif kind == 4:
        for channel in range(3):
            plane = planes[channel]
            lowest = plane.min()
            spread = plane.max() - lowest
            if spread > 0:
                for at in range(len(plane)):
                    plane[at] = (plane[at] - lowest) / spread


@_compiled
def _sharpen(plane, spare, height, width, weight):  # type: ignore[no-untyped-def]
    """Move inner pixels towards their 3 x 3 smoothing by `weight`, which may be negative."""
    spare[:] = plane
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            at = y * width + x
            total = _F(4) * spare[at]
            for up in (at - width, at, at + width):
                total += spare[up - 1] + spare[up] + spare[up + 1]
            plane[at] = spare[at] + weight * (total / _F(13) - spare[at])
    for at in range(len(plane)):
        plane[at] = _unit(plane[at])


@_compiled
def _blur(plane, spare, kernel, height, width):  # type: ignore[no-untyped-def]
    """Separable, borders reflected, in place."""
    radius = len(kernel) // 2
    padded = np.empty(width + 2 * radius, np.float32)
    for y in range(height):
        line = plane[y * width : (y + 1) * width]
        padded[radius : radius + width] = line
        for step in range(1, radius + 1):
            padded[radius - step] = line[step]
            padded[radius + width - 1 + step] = line[width - 1 - step]
        target = spare[y * width : (y + 1) * width]
        target[:] = _ZERO
        for tap in range(len(kernel)):
            weight = kernel[tap]
            if weight != 0:
                for x in range(width):
                    target[x] += weight * padded[x + tap]
    for y in range(height):
        target = plane[y * width : (y + 1) * width]
        target[:] = _ZERO
        for tap in range(len(kernel)):
            weight = kernel[tap]
            from_row = abs(y + tap - radius)
            if from_row >= height:
                from_row = 2 * (height - 1) - from_row
            if weight != 0:
                source = spare[from_row * width : (from_row + 1) * width]
                for x in range(width):
                    target[x] += weight * source[x]

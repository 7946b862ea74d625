"""Mean and deviation of channels that nobody states them of, measured on a few images.

Shape legend: H, W pixels, N channels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UserError
from ..images.decode import ImageError
from ..images.inputs import RANGES, Inputs
from ..images.store import ImageStore

logger = logging.getLogger("hapicl.data")

MEASURED = 64  # images, evenly spread over the sorted list
LEAST_DEVIATION = 1 / 255  # of a channel without any
MUCH_UNUSED = 8  # a 16-bit range of which less than an eighth is used wastes three of the eight bits kept


def with_statistics(inputs: Inputs, store: ImageStore, paths: Sequence[str]) -> Inputs:
    """Fill in the mean and deviation of channels that are no photographs'; others are given back as they are.

    They follow from the images alone, so every process of a run finds the same.

    Args:
        inputs: how the images are read.
        store: the images.
        paths: of the run, sorted.

    Raises:
        UserError: if none of the images that are looked at can be read.
    """
    if inputs.are_photographs or inputs.mean is not None:
        return inputs
    totals = np.zeros((2, inputs.in_channels))
    count, highest, kind = 0, 0.0, ""
    for values, pixels in _some(inputs, store, paths):
        scaled = pixels.reshape(-1, inputs.in_channels).astype(np.float64) / 255
        totals += scaled.mean(0), np.square(scaled).mean(0)
        count, highest, kind = count + 1, max(highest, float(values.max())), values.dtype.name
    mean, square = totals / count
    deviation = np.sqrt(np.maximum(square - mean**2, 0)).clip(LEAST_DEVIATION)
    if inputs.band_range is None and kind == "uint16" and highest < RANGES["uint16"][1] / MUCH_UNUSED:
        logger.warning(
            "the largest 16-bit value of %d images is %d: %d of the 256 levels that are kept of 0 to 65535 "
            "are used; --set band_range=0,%d uses them all",
            count,
            highest,
            highest * 255 // RANGES["uint16"][1] + 1,
            max(1, highest),
        )
    return inputs.replace(mean=tuple(mean.round(6).tolist()), std=tuple(deviation.round(6).tolist()))


def _some(
    inputs: Inputs, store: ImageStore, paths: Sequence[str]
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Values as stored and 8-bit channels, (H, W, N) each, of a few of the images that can be read."""
    reason, found = "", False
    for index in np.unique(
        np.linspace(0, len(paths) - 1, min(len(paths), MEASURED), dtype=np.int64)
    ).tolist():
        try:
            values = inputs.read_values(store.read(paths[index]).data, paths[index])
            pixels = inputs.scale(values, paths[index])
        except ImageError as error:
            reason = reason or str(error)
            continue
        found = True
        yield values, pixels
    if not found:
        raise UserError(f"none of the images can be read with in_channels={inputs.in_channels}: {reason}")

"""The compiled part of drawing crops: where one lies, how much foreground it has, and its cells' shares.

Two views take a few hundred operations on single numbers, which cost more in the interpreter than a
thirtieth of the sample's pixels in the decoder. All in one file: numba's cache notices changes in one only.

Shape legend: h, w a mask, S view cells per side, D draws of a crop.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..common.jit import is_compiled, jit

TRIES = 10  # areas and aspects tried for one crop before the largest centred one is taken
NUMBERS = 4 * TRIES + 2  # that one draw of a crop takes: area, aspect, top and left of each try, then flips

Integral = NDArray[np.int32]
Rectangle = tuple[int, int, int, int]  # top, left, height, width
Pair = tuple[float, float]


@jit
def _place(numbers: NDArray[np.float64], image_size: tuple[int, int], scale: Pair, ratio: Pair) -> Rectangle:
    """Place one crop: the first try that fits, or the largest centred crop within the aspect limits."""
    image_height, image_width = image_size
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for number in range(TRIES):
        area_draw, aspect_draw, top_draw, left_draw = numbers[4 * number : 4 * number + 4]
        area = image_height * image_width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(log_low + aspect_draw * (log_high - log_low))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image_width and 0 < height <= image_height:
            top = int(top_draw * (image_height - height + 1))
            left = int(left_draw * (image_width - width + 1))
            return top, left, height, width
    width, height = image_width, image_height
    if image_width < ratio[0] * image_height:
        height = max(1, round(image_width / ratio[0]))
    elif image_width > ratio[1] * image_height:
        width = max(1, round(image_height * ratio[1]))
    return (image_height - height) // 2, (image_width - width) // 2, height, width


@jit
def _corner(table: Integral, down: float, across: float) -> float:
    """The table at a fractional corner: bilinear, which is exact for a mask of square pixels."""
    row, column = min(int(down), table.shape[0] - 2), min(int(across), table.shape[1] - 2)
    down, across = down - row, across - column
    before = table[row, column] * (1 - down) + table[row + 1, column] * down
    after = table[row, column + 1] * (1 - down) + table[row + 1, column + 1] * down
    return float(before * (1 - across) + after * across)


@jit
def crop_share(table: Integral, view: Rectangle, scale: Pair) -> float:
    """Foreground share of a crop, in [0, 1]; arguments as for `average_cells`."""
    top, bottom = view[0] * scale[0], (view[0] + view[2]) * scale[0]
    left, right = view[1] * scale[1], (view[1] + view[3]) * scale[1]
    total = _corner(table, bottom, right) - _corner(table, top, right)
    total += _corner(table, top, left) - _corner(table, bottom, left)
    return float(min(1.0, max(0.0, total / ((bottom - top) * (right - left)))))


@jit
def draw_crop(
    numbers: NDArray[np.float64],
    image_size: tuple[int, int],
    scale: Pair,
    ratio: Pair,
    table: Integral,
    wanted: float,
) -> tuple[Rectangle, int, bool]:
    """Place crops until one has the wanted share of foreground.

    Args:
        numbers: (D, NUMBERS) in [0, 1), a row for each draw.
        image_size: (height, width) of the image, pixels.
        scale: share of the image's area, lower and upper.
        ratio: width over height, lower and upper.
        table: (h + 1, w + 1) summed-area table of the mask.
        wanted: share of foreground, in [0, 1].

    Returns:
        The crop, in pixels; which draw it is; whether it has too little foreground, being the last.
    """
    stored = (table.shape[0] - 1) / image_size[0], (table.shape[1] - 1) / image_size[1]
    view = (0, 0, 0, 0)
    for turn in range(len(numbers)):
        view = _place(numbers[turn], image_size, scale, ratio)
        if wanted <= 0 or crop_share(table, view, stored) >= wanted:
            return view, turn, False
    return view, len(numbers) - 1, True


@jit
def average_cells(
    table: Integral, view: Rectangle, scale: Pair, flips: tuple[bool, bool], size: int
) -> NDArray[np.float32]:
    """Average a mask over the cells of a view.

    Args:
        table: (h + 1, w + 1) summed-area table.
        view: top, left, height, width in pixels of the image, inside it (not checked).
        scale: mask pixels per image pixel, down and across.
        flips: horizontal, vertical.
        size: S.

    Returns:
        (S, S) float32 in [0, 1].
    """
    top, left, height, width = view
    rows = (top + np.arange(size + 1) * (height / size)) * scale[0]
    columns = (left + np.arange(size + 1) * (width / size)) * scale[1]
    points = np.empty((size + 1, size + 1))
    for i in range(size + 1):
        for j in range(size + 1):
            points[i, j] = _corner(table, rows[i], columns[j])
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    cells = np.empty((size, size), np.float32)
    for i in range(size):
        for j in range(size):
            total = points[i + 1, j + 1] - points[i, j + 1] - points[i + 1, j] + points[i, j]
            row = size - 1 - i if flips[1] else i
            column = size - 1 - j if flips[0] else j
            cells[row, column] = np.float32(min(1.0, max(0.0, total / area)))
    return cells


def kernels_are_compiled() -> bool:
    """Tell whether the loader's workers find these kernels ready, or would wait for numba."""
    return all(is_compiled(kernel) for kernel in (draw_crop, crop_share, average_cells))


def compile_kernels() -> None:
    """Compile them for the types that the loader gives, some seconds; the machine code stays on disk."""
    table, whole = np.zeros((2, 2), np.int32), (0, 0, 8, 8)
    draw_crop(np.full((1, NUMBERS), 0.5), (8, 8), (0.2, 1.0), (0.75, 4 / 3), table, 0.0)
    crop_share(table, whole, (0.125, 0.125))
    average_cells(table, whole, (0.125, 0.125), (False, False), 2)

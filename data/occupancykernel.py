"""The compiled part of `maskintegral.py`: 25 array operations on 50 numbers cost more than their arithmetic.

Shape legend: h, w a mask, S view cells per side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled


def _cells(
    table: NDArray[np.int32],
    view: tuple[int, int, int, int],
    scale: tuple[float, float],
    flips: tuple[bool, bool],
    size: int,
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
        row = min(int(rows[i]), table.shape[0] - 2)
        down = rows[i] - row
        for j in range(size + 1):
            column = min(int(columns[j]), table.shape[1] - 2)
            across = columns[j] - column
            # the integral of a mask of square pixels is bilinear between corners, so this is exact
            before = table[row, column] * (1 - down) + table[row + 1, column] * down
            after = table[row, column + 1] * (1 - down) + table[row + 1, column + 1] * down
            points[i, j] = before * (1 - across) + after * across
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    cells = np.empty((size, size), np.float32)
    for i in range(size):
        for j in range(size):
            total = points[i + 1, j + 1] - points[i, j + 1] - points[i + 1, j] + points[i, j]
            row = size - 1 - i if flips[1] else i
            column = size - 1 - j if flips[0] else j
            cells[row, column] = np.float32(min(1.0, max(0.0, total / area)))
    return cells


average_cells = compiled(_cells)

"""Occupancy of a view by a mask: exact area averages from a summed-area table.

Shape legend: H, W an image, h, w its stored mask, S view cells per side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import ViewGeometry
from .maskformat import MaskError


@dataclass(frozen=True)
class MaskIntegral:
    """The summed-area table of one mask (Crow, SIGGRAPH 1984): any number of crops for one unpacking.

    Attributes:
        table: (h + 1, w + 1) int32, foreground pixels above and left of each corner.
        image_size: (H, W) of the upright image, pixels.
        path: the image, for errors.
    """

    table: NDArray[np.int32]
    image_size: tuple[int, int]
    path: str

    def crop(self, geometry: ViewGeometry, size: int) -> NDArray[np.float32]:
        """Average the mask over each of size x size cells of a view, exactly; flips as the view flips.

        Args:
            geometry: the view, in pixels of the upright image.
            size: cells per side, S.

        Returns:
            (S, S) float32 in [0, 1]; its mean is the view's foreground share.

        Raises:
            MaskError: if the view does not lie inside the image.
        """
        height, width = self.image_size
        rows = self._edges(geometry.top, geometry.height, height, self.table.shape[0] - 1, size)
        columns = self._edges(geometry.left, geometry.width, width, self.table.shape[1] - 1, size)
        # the integral of a mask of square pixels is bilinear between corners, so this is exact
        lower, right = _below(rows, self.table.shape[0]), _below(columns, self.table.shape[1])
        corners = self.table.take(np.concatenate([lower, lower + 1]), 0)
        corners = corners.take(np.concatenate([right, right + 1]), 1)
        down, across = (rows - lower)[:, None], columns - right
        count = size + 1
        lines = corners[:count] * (1 - down) + corners[count:] * down
        points = lines[:, :count] * (1 - across) + lines[:, count:] * across
        sums = points[1:, 1:] - points[:-1, 1:] - points[1:, :-1] + points[:-1, :-1]
        area = (rows[1] - rows[0]) * (columns[1] - columns[0])
        cells = (sums / area).clip(0.0, 1.0).astype(np.float32)
        return np.ascontiguousarray(cells[:: -1 if geometry.vflip else 1, :: -1 if geometry.hflip else 1])

    def share(self, geometry: ViewGeometry) -> float:
        """Foreground share of a view, in [0, 1]; a loader asks for it at every draw of a crop."""
        height, width = self.image_size
        if geometry.top < 0 or geometry.left < 0:
            return float(self.crop(geometry, 1)[0, 0])  # says what is wrong
        if geometry.top + geometry.height > height or geometry.left + geometry.width > width:
            return float(self.crop(geometry, 1)[0, 0])
        down, across = (self.table.shape[0] - 1) / height, (self.table.shape[1] - 1) / width
        top, bottom = geometry.top * down, (geometry.top + geometry.height) * down
        left, right = geometry.left * across, (geometry.left + geometry.width) * across
        total = self._at(bottom, right) - self._at(top, right) - self._at(bottom, left) + self._at(top, left)
        return float(min(1.0, max(0.0, total / ((bottom - top) * (right - left)))))

    def _at(self, down: Any, across: Any) -> float:
        """The table at one fractional corner, bilinear."""
        row, column = min(int(down), len(self.table) - 2), min(int(across), self.table.shape[1] - 2)
        (a, b), (c, d) = self.table[row : row + 2, column : column + 2].tolist()
        down, across = down - row, across - column
        upper, lower = a + (b - a) * across, c + (d - c) * across
        return float(upper + (lower - upper) * down)

    def _edges(
        self, start: Any, length: Any, image_side: int, mask_side: int, size: int
    ) -> NDArray[np.float64]:
        """Edges of the view's cells along one axis in mask pixels, (S + 1,) float64."""
        if start < 0 or length < 1 or start + length > image_side:
            raise MaskError(
                f"{self.path}: a view of pixels {start} to {start + length} lies outside the recorded image "
                f"of {self.image_size[0]} x {self.image_size[1]}; if the image changed, run "
                "`hapicl masks build --update`"
            )
        edges: NDArray[np.float64] = (start + np.arange(size + 1) * (length / size)) * (
            mask_side / image_side
        )
        return edges


def _below(positions: NDArray[np.float64], length: int) -> NDArray[np.int64]:
    """Index of the corner before each position; the last but one for the last."""
    return np.minimum(positions.astype(np.int64), length - 2)

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
        at_rows = _interpolate(self.table, rows)
        sums = np.diff(np.diff(_interpolate(at_rows.T, columns).T, axis=0), axis=1)
        area = (rows[1] - rows[0]) * (columns[1] - columns[0])
        cells = np.clip(sums / area, 0.0, 1.0).astype(np.float32)
        return np.ascontiguousarray(cells[:: -1 if geometry.vflip else 1, :: -1 if geometry.hflip else 1])

    def share(self, geometry: ViewGeometry) -> float:
        """Foreground share of a view, in [0, 1]."""
        return float(self.crop(geometry, 1)[0, 0])

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


def _interpolate(table: NDArray[Any], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of a table at fractional positions, linear in between."""
    lower = np.clip(positions.astype(np.int64), 0, len(table) - 2)
    fraction = (positions - lower)[:, None]
    interpolated: NDArray[np.float64] = table[lower] * (1 - fraction) + table[lower + 1] * fraction
    return interpolated

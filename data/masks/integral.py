"""Occupancy of a view by a mask: exact area averages from a summed-area table.

Shape legend: H, W an image, h, w its stored mask, S view cells per side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import ViewGeometry
from .format import MaskError


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
        from ..crop_kernel import average_cells

        view, scale = self._place(geometry)
        flips = bool(geometry.hflip), bool(geometry.vflip)
        cells: NDArray[np.float32] = average_cells(self.table, view, scale, flips, size)
        return cells

    def fraction(self, geometry: ViewGeometry) -> float:
        """Foreground share of a view, in [0, 1].

        Raises:
            MaskError: if the view does not lie inside the image.
        """
        from ..crop_kernel import crop_share

        return float(crop_share(self.table, *self._place(geometry)))

    def _place(self, geometry: ViewGeometry) -> tuple[tuple[int, int, int, int], tuple[float, float]]:
        """The view's rectangle in whole pixels, and the mask's pixels per image pixel, for the kernel."""
        height, width = self.image_size
        self._inside(geometry.top, geometry.height, height)
        self._inside(geometry.left, geometry.width, width)
        view = int(geometry.top), int(geometry.left), int(geometry.height), int(geometry.width)
        return view, ((self.table.shape[0] - 1) / height, (self.table.shape[1] - 1) / width)

    def _inside(self, start: Any, length: Any, image_side: int) -> None:
        """Refuse a view that does not lie inside the image along one axis."""
        if start < 0 or length < 1 or start + length > image_side:
            raise MaskError(
                f"{self.path}: a view of pixels {start} to {start + length} lies outside the recorded image "
                f"of {self.image_size[0]} x {self.image_size[1]}; if the image changed, run "
                "`hapicl masks build --update`"
            )

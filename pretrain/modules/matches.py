"""Matches between the cells of two views of one image: which, how far apart, how many mutual.

Shape legend: B images, S cells per side, P = S*S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.geometry import ViewGeometry
from ...data.positions import cell_centres


def nearest_cells(first: ViewGeometry, second: ViewGeometry, grid: int) -> Tensor:
    """For each cell of the first view, the cell of the second whose centre is nearest in the original image.

    Args:
        first, second: geometry of B views each.
        grid: cells per side, S.

    Returns:
        (B, P) int64, row-major; the lowest index wins a tie.
    """
    return torch.cdist(cell_centres(first, grid), cell_centres(second, grid)).argmin(dim=2)


def cell_distance(first: ViewGeometry, second: ViewGeometry, match: Tensor, grid: int) -> Tensor:
    """Distance of matched cell centres in the original image, in cells of the first view.

    Args:
        first, second: geometry of B views each.
        match: (B, P) indices into the second view's cells.
        grid: cells per side, S.

    Returns:
        (B, P) float64; the unit is the side of a square of a cell's area.
    """
    here, there = cell_centres(first, grid), cell_centres(second, grid)
    gap = (there.gather(1, match[:, :, None].expand(-1, -1, 2)) - here).norm(dim=2)
    area = torch.as_tensor(first.height, dtype=gap.dtype) * torch.as_tensor(first.width)
    cells: Tensor = gap / (area.sqrt() / grid).reshape(-1, 1)
    return cells


def mutual(match: Tensor, back: Tensor) -> Tensor:
    """Tell which cells of the first view are the match of their own match, (B, P) bool.

    Args:
        match: (B, P) for each cell of the first view the matched cell of the second.
        back: (B, P) the same from the second view to the first.
    """
    found: Tensor = back.gather(1, match) == torch.arange(match.shape[1], device=match.device)
    return found

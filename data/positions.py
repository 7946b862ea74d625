"""Where the cells of views lie: in the original image, and of one view seen from another (torch).

Positions are float64; on Apple's GPU, which has none, float32: exact to a thousandth of a pixel there.

Shape legend: B views, S cells per side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.system.devices import widest_float
from .geometry import ViewGeometry


def stack(geometries: Sequence[ViewGeometry]) -> ViewGeometry:
    """Join B single geometries into one with fields of shape (B,): int32 pixels, bool flips."""
    columns = list(zip(*geometries, strict=True))
    numbers = [torch.tensor(column, dtype=torch.int32) for column in columns[:4]]
    flips = [torch.tensor(column, dtype=torch.bool) for column in columns[4:]]
    return ViewGeometry(*numbers, *flips)


def sincos_table(grid: int, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, [sin(r w), cos(r w), sin(c w), cos(c w)].

    The frequencies are w_k = 10000^(-k / (dim / 4)).

    Args:
        grid: cells per side, S.
        dim: width of the table, a multiple of 4.

    Returns:
        (S*S, dim) float64; row r*S + c is the cell in row r, column c.

    Raises:
        ValueError: if dim is not a multiple of 4.
    """
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat(
        [_sincos(rows.flatten().double(), dim), _sincos(columns.flatten().double(), dim)], dim=-1
    )


def relative_positions(first: ViewGeometry, second: ViewGeometry, grid: int, dim: int) -> Tensor:
    """Where the second view's cells lie in the first view, as sine-cosine embeddings.

    From SiameseIM (arXiv 2206.01204). Positions are in cells of the first view, after both views' flips;
    scale enters as 10 ln of the ratio of heights and of widths. Identical views give exactly
    `sincos_table` followed by the embedding of zero.

    Args:
        first, second: geometry of B views each.
        grid: cells per side, S.
        dim: width D of a position, a multiple of 4.

    Returns:
        (B, S*S, 2*D) float64: [row, column, log height ratio, log width ratio], each [sin, cos], each D/2
        wide; row i is cell i of the second view, row-major.

    Raises:
        ValueError: if the two hold different numbers of views, or dim is not a multiple of 4.
    """
    rows, columns, scale = relative_position_parts(first, second, grid, dim)
    shape = (len(rows), grid, grid, -1)
    cells = torch.cat(
        [
            rows[:, :, None].expand(shape),
            columns[:, None, :].expand(shape),
            scale[:, None, None].expand(shape),
        ],
        dim=-1,
    )
    return cells.reshape(len(rows), grid * grid, 2 * dim)


def relative_position_parts(
    first: ViewGeometry, second: ViewGeometry, grid: int, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Give what `relative_positions` is made of, 1 / S of its size: a linear layer may take the parts alone.

    Returns:
        Rows (B, S, D/2) and columns (B, S, D/2) of the second view's cells, scale (B, D); float64, on the
        device of the geometry.
    """
    cells = _cells(grid, second)
    rows = _along_axis(
        cells, first.top, first.height, first.vflip, second.top, second.height, second.vflip, grid
    )
    columns = _along_axis(
        cells, first.left, first.width, first.hflip, second.left, second.width, second.hflip, grid
    )
    log_height = 10 * torch.log(_column(second.height) / _column(first.height))
    log_width = 10 * torch.log(_column(second.width) / _column(first.width))
    scale = torch.cat([_sincos(log_height[:, 0], dim), _sincos(log_width[:, 0], dim)], dim=-1)
    return _sincos(rows, dim), _sincos(columns, dim), scale


def cell_centres(geometry: ViewGeometry, grid: int) -> Tensor:
    """Centres of a view's cells in pixels of the original image.

    Args:
        geometry: B views.
        grid: cells per side, S.

    Returns:
        (B, S*S, 2) float64 (y, x), row-major over the view as the network sees it, flips included.
    """
    cells = _cells(grid, geometry)
    y = _to_original(cells, geometry.top, geometry.height, geometry.vflip)
    x = _to_original(cells, geometry.left, geometry.width, geometry.hflip)
    pairs = torch.stack(
        [y[:, :, None].expand(-1, -1, grid), x[:, None, :].expand(-1, grid, -1)],
        dim=-1,
    )
    return pairs.reshape(len(y), grid * grid, 2)


def _cells(grid: int, geometry: ViewGeometry) -> Tensor:
    """Centres of the cells of a side of 1, (S,), on the device of the geometry."""
    like = _column(geometry.top)
    return (torch.arange(grid, dtype=like.dtype, device=like.device) + 0.5) / grid


def _column(values: float | Tensor) -> Tensor:
    """A field as (B, 1) float64, or what the device has that comes nearest."""
    found = torch.as_tensor(values)
    return found.to(widest_float(found.device)).reshape(-1, 1)


def _to_original(cells: Tensor, start: int | Tensor, length: int | Tensor, flip: bool | Tensor) -> Tensor:
    """Cell centres (S,) in [0, 1] of a view to original pixels, (B, S)."""
    start, length, flipped = _column(start), _column(length), _column(flip).bool()
    return start + torch.where(flipped, 1 - cells, cells) * length


def _along_axis(
    cells: Tensor,
    start1: int | Tensor,
    length1: int | Tensor,
    flip1: bool | Tensor,
    start2: int | Tensor,
    length2: int | Tensor,
    flip2: bool | Tensor,
    grid: int,
) -> Tensor:
    """Second view's cell centres in cells of the first view along one axis, (B, S)."""
    original = _to_original(cells, start2, length2, flip2)
    if len(original) != len(_column(start1)):
        raise ValueError(
            f"{len(_column(start1))} first views but {len(original)} second views: give one of each"
        )
    inside = (original - _column(start1)) / _column(length1)
    return torch.where(_column(flip1).bool(), 1 - inside, inside) * grid - 0.5


def _sincos(positions: Tensor, dim: int) -> Tensor:
    """(...,) positions to (..., dim / 2): dim / 4 sines, then dim / 4 cosines."""
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine position needs a width that is a multiple of 4, not {dim}")
    quarter = dim // 4
    exponents = -torch.arange(quarter, dtype=positions.dtype, device=positions.device) / quarter
    frequencies = 10000.0**exponents
    angles = positions[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

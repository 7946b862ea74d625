"""Which patches the encoder does not see: random masks and BEiT's blocks, exact in count, drawn by counter.

The numbers are drawn on the host, one counter per place in the epoch's order, and turned into masks on the
device without waiting for it. Shape legend: B images, S cells per side, N = S*S, T attempts.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ...common.config import Settings
from ...common.errors import UserError
from ...common.randomness import counter_generator
from ...common.system.devices import widest_float
from ...data.loading.batch import Batch
from ...engine.distributed import rank, world_size

# a BEiT block's height over width (arXiv 2106.08254, algorithm 1)
ASPECT = (0.3, 1 / 0.3)
# BEiT's smallest block is 16 of 196 cells; other grids keep the share
SMALLEST_BLOCK = 16 / 196
# blocks tried; what they leave of the count is filled with random cells
ATTEMPTS = 24
# smallest grid on which a block of the smallest area still leaves others room
SMALLEST_GRID = 6

# of all patches, such as 0.6 or 0.75
MaskRatio = Annotated[float, Field(gt=0, lt=1)]
# exp(30) is 1e13: beyond it the draw is an order, not a draw
ForegroundBias = Annotated[float, Field(ge=-30, le=30)]


class MaskPolicy(Settings):
    """How many patches are hidden, and in which pattern.

    `foreground_bias` is this project's own: cells, or blocks by their mean, are drawn with weight
    exp(bias * occupancy), so above 0 the foreground is hidden more, below 0 less; the count stays exact.
    """

    ratio: MaskRatio
    pattern: Literal["random", "block"] = "random"
    foreground_bias: ForegroundBias = 0.0

    def count(self, grid: int) -> int:
        """Masked cells on a grid of S x S: exactly round(ratio * N).

        Raises:
            UserError: if nothing or everything would be masked, or blocks do not fit the grid.
        """
        if self.pattern == "block" and grid < SMALLEST_GRID:
            raise UserError(
                f"block masking needs a grid of at least {SMALLEST_GRID} x {SMALLEST_GRID} patches, not "
                f"{grid} x {grid}: raise --image-size, or take smaller patches (--set stem=patch8), "
                "or set config.mask_pattern to random"
            )
        count = round(self.ratio * grid * grid)
        if not 0 < count < grid * grid:
            raise UserError(
                f"mask_ratio {self.ratio} masks {count} of {grid * grid} patches; take smaller patches "
                "(--set stem=patch8) or another ratio, so that some are hidden and some seen"
            )
        return count


def smallest_block(grid: int) -> int:
    """Least area of a block on a grid of S x S, cells: BEiT's 16 of 196, scaled."""
    return max(1, round(SMALLEST_BLOCK * grid * grid))


def draw_mask(policy: MaskPolicy, batch: Batch, grid: int, *, seed: int, purpose: str = "mask") -> Tensor:
    """Draw the masks of this process's slice of a batch.

    The counters are (seed, epoch, place in the epoch's order), so any number of processes, any resume and
    any device hide the same patches.

    Args:
        policy: count and pattern; with a foreground bias the batch must hold occupancy, of view 0.
        batch: B images.
        grid: S.
        seed: the run's.
        purpose: names the stream of random numbers.

    Returns:
        (B, N) bool on the batch's device, True where hidden; every row has exactly `policy.count(grid)`.
    """
    images, count = len(batch), policy.count(grid)
    # the loader deals each process a stretch of every global batch, so this is the place in the epoch
    first = (batch.step * world_size() + rank()) * images
    wide = 3 * ATTEMPTS if policy.pattern == "block" else 0
    drawn = np.empty((images, wide + grid * grid), np.float32)
    for row in range(images):
        generator = counter_generator(seed, batch.epoch, first + row, 0, purpose)
        drawn[row] = generator.random(drawn.shape[1], np.float32)
    numbers = torch.from_numpy(drawn).to(batch.views[0].device, non_blocking=True)
    weight = None
    if policy.foreground_bias:
        if not batch.occupancy:
            raise UserError("foreground_bias needs masks; give --masks, or set it to 0")
        occupancy = functional.adaptive_avg_pool2d(batch.occupancy[0][:, None].float(), grid).flatten(1)
        weight = policy.foreground_bias * occupancy
    if policy.pattern == "random":
        return random_mask(numbers, count, log_weight=weight)
    return block_mask(
        numbers[:, :wide].reshape(images, ATTEMPTS, 3), numbers[:, wide:], count, log_weight=weight
    )


def random_mask(noise: Tensor, count: int, *, log_weight: Tensor | None = None) -> Tensor:
    """Hide `count` cells of each row, drawn without replacement.

    Args:
        noise: (B, N) uniform in [0, 1).
        count: cells to hide.
        log_weight: (B, N) log of the weights of the draw; None weighs all alike.

    Returns:
        (B, N) bool with exactly `count` True in each row.
    """
    # Gumbel noise on top of log weights: the largest `count` are a weighted draw without replacement
    # (Efraimidis and Spirakis 2006)
    score = -torch.log(-torch.log(noise.clamp(1e-7, 1 - 1e-7)))
    score = score if log_weight is None else score + log_weight
    chosen = score.topk(count, dim=1).indices
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, chosen, True)


def block_mask(draws: Tensor, noise: Tensor, count: int, *, log_weight: Tensor | None = None) -> Tensor:
    """Hide `count` cells in rectangles, as BEiT does (arXiv 2106.08254, algorithm 1).

    Each attempt draws an area between the smallest block and what remains, an aspect exp(U(log .3, log 1/.3))
    and a place; it counts when it fits the grid and hides at least one new cell and not too many. Random
    cells fill the rest.

    Args:
        draws: (B, T, 3) uniform in [0, 1): area, aspect and place.
        noise: (B, N) uniform, for the fill.
        count: cells to hide.
        log_weight: (B, N) log weights; a block's is its cells' mean.

    Returns:
        (B, N) bool with exactly `count` True in each row.
    """
    grid = math.isqrt(noise.shape[1])
    hidden = torch.zeros_like(noise, dtype=torch.bool)
    table = None if log_weight is None else _integral(log_weight, grid)
    for attempt in draws.unbind(1):
        remaining = count - hidden.sum(1)
        height, width = _block_sides(attempt[:, 0], attempt[:, 1], remaining, grid)
        block = _place(attempt[:, 2], height, width, grid, table)
        fresh = (block & ~hidden).sum(1)
        fits = (height < grid) & (width < grid) & (fresh > 0) & (fresh <= remaining)
        hidden |= block & fits[:, None]
    return _fill(hidden, noise, count, log_weight)


def _block_sides(
    area_draw: Tensor, aspect_draw: Tensor, remaining: Tensor, grid: int
) -> tuple[Tensor, Tensor]:
    """Height and width of one block per image, (B,) int64 each, at least 1."""
    least = smallest_block(grid)
    area = least + area_draw * (remaining - least).clamp_min(0)
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    aspect = torch.exp(low + aspect_draw * (high - low))
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    return height.long().clamp_min(1), width.long().clamp_min(1)


def _place(draw: Tensor, height: Tensor, width: Tensor, grid: int, table: Tensor | None) -> Tensor:
    """Blocks at drawn places inside the grid, (B, N) bool."""
    cells = torch.arange(grid, device=draw.device)
    height, width = height.clamp_max(grid), width.clamp_max(grid)
    if table is None:
        rows, columns = grid - height + 1, grid - width + 1
        place = (draw * (rows * columns)).long().minimum(rows * columns - 1)
        top, left = place // columns, place % columns
    else:
        top, left = _weighted_place(draw, height, width, grid, table)
    in_rows = (cells >= top[:, None]) & (cells < (top + height)[:, None])
    in_columns = (cells >= left[:, None]) & (cells < (left + width)[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :]).flatten(1)


def _weighted_place(
    draw: Tensor, height: Tensor, width: Tensor, grid: int, table: Tensor
) -> tuple[Tensor, Tensor]:
    """Top and left drawn with weight exp(mean log weight of the block), (B,) int64 each."""
    cells = torch.arange(grid, device=draw.device)
    top, left = cells[None, :, None], cells[None, None, :]
    bottom, right = top + height[:, None, None], left + width[:, None, None]
    inside = (bottom <= grid) & (right <= grid)
    image = torch.arange(len(draw), device=draw.device)[:, None, None]
    bottom, right = bottom.clamp_max(grid), right.clamp_max(grid)
    total = table[image, bottom, right] - table[image, top, right]
    total = total - table[image, bottom, left] + table[image, top, left]
    mean = (total / (height * width)[:, None, None]).masked_fill(~inside, -torch.inf).flatten(1)
    summed = mean.softmax(1).cumsum(1)
    place = torch.searchsorted(summed, (draw * summed[:, -1])[:, None], right=True)[:, 0]
    # rounding may point past the last place inside
    last = (inside.flatten(1) * torch.arange(grid * grid, device=draw.device)).amax(1)
    place = place.minimum(last)
    return place // grid, place % grid


def _integral(values: Tensor, grid: int) -> Tensor:
    """Sums over all rectangles from the corner, (B, N) to (B, S + 1, S + 1)."""
    square = values.to(widest_float(values.device)).reshape(-1, grid, grid)
    return functional.pad(square.cumsum(1).cumsum(2), (1, 0, 1, 0))


def _fill(hidden: Tensor, noise: Tensor, count: int, log_weight: Tensor | None) -> Tensor:
    """Add random cells until exactly `count` are hidden; hidden ones stay."""
    score = -torch.log(-torch.log(noise.clamp(1e-7, 1 - 1e-7)))
    score = (score if log_weight is None else score + log_weight).masked_fill(hidden, torch.inf)
    chosen = score.topk(count, dim=1).indices
    return torch.zeros_like(hidden).scatter_(1, chosen, True)


def split(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of seen and of hidden cells, in reading order.

    Args:
        mask: (B, N) bool with `count` True in each row.
        count: known on the host, so that the shapes need no wait for the device.

    Returns:
        (B, N - count) and (B, count) int64.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : mask.shape[1] - count], order[:, mask.shape[1] - count :]

"""Pictures of patches, masks and similarities for run reports. Shape legend: B images, S cells per side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ....common.types import Pixels
from ....data.images.inputs import RGB, Inputs
from ....models.preprocess import to_pixels
from ....models.tokens import unpatchify

SHOWN = 6  # samples in a picture, a row each
GAP = 4  # white pixels between tiles
SMALLEST_TILE = 160  # tiles are enlarged to at least this side, pixels


def hide(pixels: Pixels, mask: Tensor) -> Pixels:
    """Paint the hidden cells, (B, S*S) bool, grey in (B, H, W, 3) pixels."""
    covered = _cells_to_pixels(mask.cpu().float(), pixels.shape[1]) > 0.5
    return np.where(covered[..., None], np.uint8(128), pixels)


def heat(values: Tensor, side: int) -> Pixels:
    """Colour cell values (B, S*S) from -1 (dark) to 1 (bright), (B, side, side, 3)."""
    shares = (_cells_to_pixels(values.detach().float().cpu(), side) + 1) / 2
    colours = matplotlib.colormaps["magma"](np.clip(shares, 0, 1))[..., :3]
    return np.round(colours * 255).astype(np.uint8)


def mark_cell(pixels: Pixels, cell: int, grid: int) -> Pixels:
    """Frame one cell in red on (B, H, W, 3) pixels."""
    marked = pixels.copy()
    step = pixels.shape[1] / grid
    top, left = round(cell // grid * step), round(cell % grid * step)
    bottom, right = round((cell // grid + 1) * step), round((cell % grid + 1) * step)
    wide = max(1, pixels.shape[1] // 64)
    inner = marked[:, top + wide : bottom - wide, left + wide : right - wide].copy()
    marked[:, top:bottom, left:right] = (255, 0, 0)
    marked[:, top + wide : bottom - wide, left + wide : right - wide] = inner
    return marked


def tile(columns: Sequence[Pixels]) -> Pixels:
    """Lay columns of (B, H, W, 3) side by side, a row for each of the first samples, on white."""
    shown = min(SHOWN, len(columns[0]))
    factor = -(-SMALLEST_TILE // columns[0].shape[1])
    rows = []
    for sample in range(shown):
        tiles = [np.kron(column[sample], np.ones((factor, factor, 1), np.uint8)) for column in columns]
        rows.append(
            np.concatenate(
                [np.pad(one, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for one in tiles], 1
            )
        )
    joined: Pixels = np.concatenate(rows, 0)[:-GAP, :-GAP]
    return joined


def similarity_picture(
    first: Tensor,
    second: Tensor,
    mask: Tensor,
    target: Tensor,
    prediction: Tensor,
    *,
    inputs: Inputs = RGB,
) -> Pixels:
    """SiameseIM's view of itself, four tiles a sample.

    Args:
        first, second: (B, C, H, W) normalised views x1 and x2.
        mask: (B, S*S) bool, hidden cells of x1.
        target: (B, S*S, D) target tokens of x2.
        prediction: (B, S*S, D) predicted tokens of x2.
        inputs: how the views were normalised.

    Returns:
        Per sample: x1 with its hidden cells grey; x2 with its centre cell framed; cosine of every target
        with the framed cell's target; cosine of every target with the framed cell's prediction.
    """
    grid = round(target.shape[1] ** 0.5)
    cell = (grid // 2) * grid + grid // 2
    # the tokens of a batch share a large mean; what differs between cells shows without it
    centre = target.float().mean((0, 1))
    targets = functional.normalize(target.float() - centre, dim=-1)
    asked = functional.normalize(prediction[:, cell].float() - centre, dim=-1)
    side = second.shape[-1]
    return tile(
        [
            hide(to_pixels(first, inputs), mask),
            mark_cell(to_pixels(second, inputs), cell, grid),
            heat((targets * targets[:, cell, None]).sum(-1), side),
            heat((targets * asked[:, None]).sum(-1), side),
        ]
    )


def reconstruction_picture(
    images: Tensor,
    mask: Tensor,
    prediction: Tensor,
    patches: Tensor,
    patch_size: int,
    *,
    inputs: Inputs = RGB,
) -> Pixels:
    """MAE's view of itself, three tiles a sample: image, what is seen, seen patches with predicted ones.

    Args:
        images: (B, C, H, W), normalised.
        mask: (B, N) bool, hidden patches.
        prediction: (B, N, n) predicted patches in the units of `images`.
        patches: (B, N, n) true ones.
        patch_size: their side, pixels.
        inputs: how the images were normalised.
    """
    grid = round(mask.shape[1] ** 0.5)
    joined = unpatchify(torch.where(mask[..., None], prediction.to(patches.dtype), patches), patch_size, grid)
    pixels = to_pixels(images, inputs)
    return tile([pixels, hide(pixels, mask), to_pixels(joined, inputs)])


def _cells_to_pixels(values: Tensor, side: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    """Cells (B, S*S) as squares of pixels, (B, side, side)."""
    grid = round(values.shape[1] ** 0.5)
    enlarged = functional.interpolate(values.reshape(-1, 1, grid, grid), size=(side, side), mode="nearest")
    return enlarged[:, 0].numpy()

"""Jigsaw and rotation: how they are drawn and applied, for PIRL and for the tasks it is compared with.

Shape legend: B images, C channels, P patch side in pixels, D embedding; 3 x 3 cells.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....data.loading.batch import JigsawPolicy, PhotometricPolicy

GRID = 3
CELLS = GRID * GRID


def jigsaw_policy(
    image_size: int, hflip: float, photometric: PhotometricPolicy, *, per_patch: bool = True
) -> JigsawPolicy:
    """PIRL's Jigsaw (255 pixels, patches of 64 in cells of 85, for images of 224) for any image size."""
    cell = max(2, round(255 / 224 * image_size / GRID))
    patch = max(1, round(64 / 85 * cell))
    return JigsawPolicy(
        size=GRID * cell,
        image_size=image_size,
        patch=patch,
        grid=GRID,
        hflip=hflip,
        photometric=photometric,
        photometric_per_patch=per_patch,
    )


def ordered(values: Tensor, permutation: Tensor) -> Tensor:
    """Put what belongs to each cell in the permuted order: place j gets the patch permutation[:, j].

    Args:
        values: (B, 9, D).
        permutation: (B, 9) int64.
    """
    return values.gather(1, permutation[:, :, None].expand_as(values))


def rotate_images(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate each image (B, C, S, S) by its own number of quarter turns (B,), counter-clockwise."""
    result = images
    for number in (1, 2, 3):
        here = (turns == number)[:, None, None, None]
        result = torch.where(here, torch.rot90(images, number, (2, 3)), result)
    return result


def rotate_patches(patches: Tensor, turns: Tensor) -> Tensor:
    """Rotate each Jigsaw view (B, 9, C, P, P) as a whole: its cells move, and each patch turns.

    The same as rotating the crop before it is cut, since offsets inside the cells are uniform either way.
    """
    batch, cells = patches.shape[:2]
    turned = rotate_images(patches.flatten(0, 1), turns.repeat_interleave(cells, output_size=batch * cells))
    layout = torch.arange(CELLS, device=patches.device).view(GRID, GRID)
    orders = torch.stack([torch.rot90(layout, number).flatten() for number in range(4)])
    order = orders[turns][:, :, None, None, None]
    return turned.view_as(patches).gather(1, order.expand_as(patches))


def distant_permutations(number: int) -> npt.NDArray[np.int64]:
    """Choose permutations of 9 cells far from each other in Hamming distance (Noroozi and Favaro, 2016).

    Greedy over all 9! = 362,880: the next is the one whose nearest chosen permutation is farthest, then whose
    mean distance is largest, then the first in lexicographic order. No randomness: the set is the same
    everywhere. About half a second for 1,000 on one core.

    Args:
        number: how many, 1 to 362,880.

    Returns:
        (number, 9) int64, the identity first.
    """
    every = np.array(list(itertools.permutations(range(CELLS))), dtype=np.uint8)
    columns = np.ascontiguousarray(every.T)
    nearest = np.full(len(every), CELLS, dtype=np.uint8)
    total = np.zeros(len(every), dtype=np.int32)
    distance = np.empty(len(every), dtype=np.uint8)
    chosen = [0]
    while len(chosen) < number:
        distance.fill(0)
        for column, place in zip(columns, every[chosen[-1]], strict=True):
            distance += (column != place).view(np.uint8)
        np.minimum(nearest, distance, out=nearest)
        total += distance
        farthest = np.flatnonzero(nearest == nearest.max())
        chosen.append(int(farthest[np.argmax(total[farthest])]))
    return every[chosen].astype(np.int64)

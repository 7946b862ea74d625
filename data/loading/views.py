"""One sample's views: where they lie, and their pixels.

Everything here is drawn by counter and computed in the loader's workers, on uint8 pixels. The resize is
torchvision's antialiased one: the same kernels of torch, so the difference is zero.

Shape legend: H, W pixels of the decoded image, C its channels, S view side in pixels, P patch side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ...common.randomness import reused_generator
from ...common.types import Pixels
from ..geometry import NO_MASK, ViewGeometry, sample_geometry, sample_with_foreground
from ..masks.integral import MaskIntegral
from .batch import CropFilter, JigsawPolicy, Needs, ViewPolicy

# A decode at half size with less than this left over the view differs by 3 to 4 grey levels a pixel from the
# full one, by 2 with it (docs/speed.md): the crop's borders move by up to half a decoded pixel.
REDUCE_MARGIN = 2.0

# What `torch.nn.functional.interpolate(..., antialias=True)` calls; only this form writes in place, in less
# than two thirds of the time (docs/speed.md). A test holds it to torchvision.
_RESIZE: dict[CropFilter, Callable[..., torch.Tensor]] = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}


class Counter(NamedTuple):
    """What every draw of a sample depends on."""

    seed: int
    epoch: int
    sample: int

    def generator(self, view: int, purpose: str) -> np.random.Generator:
        """Give the generator of one view for one purpose; the next call takes it back."""
        return reused_generator(self.seed, self.epoch, self.sample, view, purpose)


class Draw(NamedTuple):
    """A view's geometry, and whether it was kept though under the wanted share of foreground."""

    geometry: ViewGeometry
    fallback: bool


class JigsawDraw(NamedTuple):
    """Jigsaw: crop, offset of the patch in each cell (cells, 2) in pixels, order of the patches (cells,)."""

    geometry: ViewGeometry
    offsets: npt.NDArray[np.int64]
    permutation: npt.NDArray[np.int64]


def draw_views(
    needs: Needs, counter: Counter, image_size: tuple[int, int], mask: MaskIntegral | None
) -> list[Draw]:
    """Draw the geometry of all views of a sample.

    Args:
        needs: the views, and the redraw rule.
        counter: seed, epoch and sample.
        image_size: (height, width) of the upright original, pixels.
        mask: the image's mask; None where there is none, then nothing is redrawn.
    """
    draws: list[Draw] = []
    for number, policy in enumerate(needs.views):
        if policy.same_geometry_as is not None:
            draws.append(draws[policy.same_geometry_as])
        else:
            generator = counter.generator(number, "geometry")
            draws.append(_draw_view(needs, policy, generator, image_size, mask))
    return draws


def _draw_view(
    needs: Needs,
    policy: ViewPolicy,
    generator: np.random.Generator,
    image_size: tuple[int, int],
    mask: MaskIntegral | None,
) -> Draw:
    """Draw until `needs.min_foreground` of the crop is foreground, at most `needs.redraws` times more."""
    wanted = needs.min_foreground if mask is not None else 0.0
    geometry, short = sample_with_foreground(
        generator,
        image_size,
        mask.table if mask is not None else NO_MASK,
        wanted,
        draws=1 + (needs.redraws if wanted > 0 else 0),
        scale=policy.scale,
        ratio=policy.ratio,
        hflip=policy.hflip,
        vflip=policy.vflip,
    )
    return Draw(geometry, fallback=short)


def draw_jigsaw(policy: JigsawPolicy, counter: Counter, image_size: tuple[int, int]) -> JigsawDraw:
    """Draw PIRL's Jigsaw view (arXiv 1912.01991): its own crop, an offset in each cell, a permutation.

    Offsets are uniform over all places of a patch inside its cell; the permutation is uniform over all
    (grid * grid)! orders.
    """
    generator = counter.generator(0, "jigsaw")
    geometry = sample_geometry(generator, image_size, scale=policy.scale, hflip=policy.hflip)
    cells = policy.grid * policy.grid
    slack = policy.size // policy.grid - policy.patch
    return JigsawDraw(
        geometry,
        generator.integers(0, slack + 1, size=(cells, 2)),
        generator.permutation(cells),
    )


def cut_view(
    image: Pixels,
    image_size: tuple[int, int],
    geometry: ViewGeometry,
    size: int,
    out: Pixels | None = None,
    *,
    crop_filter: CropFilter = "bilinear",
) -> Pixels:
    """Crop, resize and flip.

    Args:
        image: (H, W, C) uint8, the original or a reduced copy of it.
        image_size: (height, width) of the original, in whose pixels `geometry` is. In a reduced copy the
            crop's borders move to the nearest pixel.
        geometry: the view.
        size: S.
        out: (S, S, C) contiguous, written and returned if given.
        crop_filter: of the resize, antialiased.
    """
    if out is None:
        out = np.empty((size, size, image.shape[2]), dtype=np.uint8)
    top, bottom = _span(geometry.top, geometry.height, image.shape[0], image_size[0])
    left, right = _span(geometry.left, geometry.width, image.shape[1], image_size[1])
    # torch would copy the crop itself, in more time
    crop = np.ascontiguousarray(image[top:bottom, left:right])
    _RESIZE[crop_filter](_as_planes(crop), (size, size), False, None, None, out=_as_planes(out))
    if geometry.hflip or geometry.vflip:
        code = -1 if geometry.hflip and geometry.vflip else int(bool(geometry.hflip))
        cv2.flip(out, code, dst=out)
    return out


def _span(
    start: float | torch.Tensor, length: float | torch.Tensor, side: int, original: int
) -> tuple[int, int]:
    """First and one-past-last pixel of a crop along one axis of the decoded image; at least one pixel."""
    if side == original:
        return int(start), int(start + length)
    ratio = side / original
    first = min(side - 1, round(float(start) * ratio))
    return first, max(first + 1, min(side, round(float(start + length) * ratio)))


def _as_planes(pixels: Pixels) -> torch.Tensor:
    """The same memory as torch names it, (1, C, H, W) in channels_last."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def cut_patches(image: Pixels, image_size: tuple[int, int], policy: JigsawPolicy, draw: JigsawDraw) -> Pixels:
    """Cut a Jigsaw view into patches.

    Returns:
        (cells, P, P, C) uint8 in reading order, before the permutation.
    """
    view = cut_view(image, image_size, draw.geometry, policy.size)
    cell = policy.size // policy.grid
    patches = np.empty((len(draw.offsets), policy.patch, policy.patch, view.shape[2]), dtype=np.uint8)
    for number, (down, right) in enumerate(draw.offsets):
        top = number // policy.grid * cell + down
        left = number % policy.grid * cell + right
        patches[number] = view[top : top + policy.patch, left : left + policy.patch]
    return patches


def shortest_side(
    needs: Needs, draws: list[Draw], jigsaw: JigsawDraw | None, image_size: tuple[int, int]
) -> int:
    """Short side in pixels that a reduced decode must keep: every crop stays `REDUCE_MARGIN` times its view.

    Args:
        needs, draws, jigsaw: the views and where they lie.
        image_size: (height, width) of the original, pixels.
    """
    wanted = [(policy.size, draw.geometry) for policy, draw in zip(needs.views, draws, strict=True)]
    if needs.jigsaw is not None and jigsaw is not None:
        wanted.append((needs.jigsaw.size, jigsaw.geometry))
    ratio = max(size / min(int(view.height), int(view.width)) for size, view in wanted)
    return math.ceil(min(image_size) * ratio * REDUCE_MARGIN)

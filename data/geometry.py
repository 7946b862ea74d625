"""One geometry: the crop and flips that image, mask, relative positions and dense matches all read (numpy).

Shape legend: B views, S cells per side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

# stage one reads this file in every worker and has no use for torch's two seconds of import
if TYPE_CHECKING:
    from torch import Tensor

NO_MASK = np.zeros((2, 2), np.int32)  # stands for the summed-area table where there is no mask


class ViewGeometry(NamedTuple):
    """Where a view lies, in pixels of the original, EXIF-upright image; flips are applied after the crop.

    Fields are numbers for one view, or tensors of shape (B,) for a batch of views (`positions.stack` and
    torch's default collate make one from the other).
    """

    top: int | Tensor
    left: int | Tensor
    height: int | Tensor
    width: int | Tensor
    hflip: bool | Tensor
    vflip: bool | Tensor = False


def sample_geometry(
    generator: np.random.Generator,
    image_size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
) -> ViewGeometry:
    """Draw a random resized crop (Szegedy et al., CVPR 2015, as torchvision draws it) and flips.

    Ten draws of area and log-uniform aspect; when none fits, the largest centred crop within the aspect
    limits. The generator is advanced by the same amount whatever the outcome, so later draws do not depend
    on it.

    Args:
        generator: counter-based generator of this (seed, epoch, sample, view).
        image_size: (height, width) of the upright original, pixels.
        scale: share of the image's area, lower and upper.
        ratio: width over height, lower and upper.
        hflip, vflip: probability of a horizontal and of a vertical flip.

    Returns:
        The geometry, of at least 1 x 1 pixels and inside the image.
    """
    return sample_with_foreground(
        generator, image_size, NO_MASK, 0.0, scale=scale, ratio=ratio, hflip=hflip, vflip=vflip
    )[0]


def sample_with_foreground(
    generator: np.random.Generator,
    image_size: tuple[int, int],
    table: NDArray[np.int32],
    wanted: float,
    *,
    draws: int = 1,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: float,
    vflip: float,
) -> tuple[ViewGeometry, bool]:
    """Draw as `sample_geometry` until enough of the crop is foreground; the last draw is kept anyway.

    Args:
        generator, image_size, scale, ratio, hflip, vflip: as for `sample_geometry`; each draw advances the
            generator by the same amount.
        table: (h + 1, w + 1) summed-area table of the mask, of any size; not read where `wanted` is 0.
        wanted: share of the crop that shall be foreground, in [0, 1].
        draws: how often to draw at most.

    Returns:
        The geometry, and whether it has too little foreground.
    """
    from .crop_kernel import NUMBERS, draw_crop

    numbers = generator.random((draws, NUMBERS))
    limits = (float(scale[0]), float(scale[1])), (float(ratio[0]), float(ratio[1]))
    (top, left, height, width), taken, short = draw_crop(numbers, image_size, *limits, table, wanted)
    flips = numbers[taken, -2:].tolist()
    return ViewGeometry(top, left, height, width, flips[0] < hflip, flips[1] < vflip), short

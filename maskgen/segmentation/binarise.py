"""From a saliency map to a mask: threshold, cleaning, and how sure the mask is.

Shapes: h, w the working image; R regions.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ...common.types import Mask


def otsu_split(
    values: NDArray[np.float32],
    area: NDArray[np.int64],
    border: NDArray[np.int64] | None = None,
    off_border: float = 0.0,
) -> tuple[float, float]:
    """Otsu's threshold over values that weigh by area (Otsu 1979), exact, without a histogram.

    With `off_border` the criterion, the variance between the classes, is multiplied by that power of the
    share of the border that stays background: of like splits it takes the one that leaves the border out.
    Where no split leaves any of it out, it is Otsu's own.

    Args:
        values: (R,) one per region.
        area: (R,) pixels per region.
        border: (R,) border pixels per region; not needed without `off_border`.
        off_border: the exponent.

    Returns:
        The threshold (values above it are foreground) and the between-class share of the variance in [0, 1];
        for constant values that constant and 0.
    """
    order = np.argsort(values, kind="stable")
    value, weight = values[order].astype(np.float64), area[order].astype(np.float64)
    total, mean = weight.sum(), float((weight * value).sum() / weight.sum())
    variance = float((weight * (value - mean) ** 2).sum() / total)
    if len(value) < 2 or variance < 1e-9:
        return float(value[-1]), 0.0
    fraction = np.cumsum(weight)[:-1] / total
    difference = mean * fraction - np.cumsum(weight * value)[:-1] / total
    between = difference**2 / (fraction * (1 - fraction))
    score = between
    if off_border and border is not None:
        left_out = np.cumsum(border[order])[:-1] / border.sum()
        # where every split has the whole border in the foreground, leaving it out cannot tell them apart
        score = between * left_out**off_border if left_out.any() else between
    best = int(score.argmax())
    return float((value[best] + value[best + 1]) / 2), float(min(1.0, between[best] / variance))


def border_pixels(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Pixels of each region on the top, left and right border; objects stand on the bottom. (R,)."""
    rim = np.concatenate([labels[0], labels[:, 0], labels[:, -1]])
    return np.bincount(rim, minlength=count)


def clean_mask(mask: Mask, min_part: float, max_hole: float | None = None) -> Mask:
    """Fill holes and drop small parts.

    Args:
        mask: (h, w) bool.
        min_part: parts smaller than this fraction of the largest one go.
        max_hole: holes of at most this fraction of the mask are filled; None: all of them.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    height, width = mask.shape
    left, top, wide, high = stats[:, 0], stats[:, 1], stats[:, 2], stats[:, 3]
    inside = (left > 0) & (top > 0) & (left + wide < width) & (top + high < height)
    inside[0] = False
    if max_hole is not None:
        inside &= stats[:, cv2.CC_STAT_AREA] <= max_hole * np.count_nonzero(mask)
    filled: Mask = mask | inside[labels]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(filled.astype(np.uint8), connectivity=8)
    if count < 2:
        return filled
    keep = stats[:, cv2.CC_STAT_AREA] >= min_part * stats[1:, cv2.CC_STAT_AREA].max()
    keep[0] = False
    kept: Mask = keep[labels]
    return kept


def confidence(lab: NDArray[np.float32], mask: Mask, separation: float, agreement: float) -> float:
    """How sure a mask is, in [0, 1]; for ranking masks, not a probability.

    The product of three: how far the saliency falls into two classes (Otsu's between-class share; a uniform
    spread has .75, so .5 counts as nothing), how much mask and cut agree, and how far apart the mean colours
    of foreground and background lie (a saliency map is stretched to [0, 1] and would hide a flat image).

    Args:
        lab: (h, w, 3) float32 CIE Lab, L in 0 .. 100.
        mask: (h, w) bool.
        separation: between-class share of the variance.
        agreement: IoU of the mask before and after the cut; 1 without a cut.

    Returns:
        0 for an empty or full mask.
    """
    if not mask.any() or mask.all():
        return 0.0
    inside = np.array(cv2.mean(lab, mask.astype(np.uint8))[:3])
    outside = np.array(cv2.mean(lab, (~mask).astype(np.uint8))[:3])
    contrast = 1 - np.exp(-np.linalg.norm(inside - outside) / 5.0)  # 5 Lab units: a difference one notices
    return float(max(0.0, 2 * separation - 1) * agreement * contrast)

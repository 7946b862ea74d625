"""Measures of a saliency map, or a mask, against the truth, as the field reports them.

Shape legend: H, W pixels of the truth. Maps are float in [0, 1], truths bool.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...common.types import Mask

BETA_SQUARED = 0.3  # Achanta et al., CVPR 2009: precision counts more than recall
_TINY = np.finfo(np.float64).eps
Map = NDArray[np.floating] | Mask


def mean_absolute_error(saliency: Map, truth: Mask) -> float:
    """Mean absolute difference between map and truth (Perazzi et al., CVPR 2012)."""
    return float(np.abs(saliency.astype(np.float64) - truth).mean())


def f_beta_curve(saliency: Map, truth: Mask) -> NDArray[np.float64]:
    """F-beta at the thresholds t / 255, t = 1 to 255: foreground is saliency of at least t / 255, in 8 bits.

    (t = 0 would make every map all foreground.) With an empty truth F is 1 where a threshold leaves no
    foreground and 0 elsewhere.

    Returns:
        (255,) float64.
    """
    levels = np.rint(np.asarray(saliency, np.float64) * 255).astype(np.int64)
    positives = _at_least(levels)
    hits = _at_least(levels[truth])
    total = np.count_nonzero(truth)
    if total == 0:
        return np.where(positives == 0, 1.0, 0.0)
    precision, recall = hits / np.maximum(positives, 1), hits / total
    f_beta = (1 + BETA_SQUARED) * precision * recall / np.maximum(BETA_SQUARED * precision + recall, _TINY)
    return np.asarray(f_beta, np.float64)


def adaptive_f_beta(saliency: Map, truth: Mask) -> float:
    """F-beta at twice the map's mean, at most 1 (Achanta et al. 2009); empty truths as in `f_beta_curve`."""
    values = np.asarray(saliency, np.float64)
    mask = values >= min(2 * values.mean(), 1.0)
    if not values.any():
        mask[:] = False
    hits, positives, total = np.count_nonzero(mask & truth), np.count_nonzero(mask), np.count_nonzero(truth)
    if total == 0:
        return float(positives == 0)
    if hits == 0:
        return 0.0
    precision, recall = hits / positives, hits / total
    return (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)


def s_measure(saliency: Map, truth: Mask, alpha: float = 0.5) -> float:
    """Structure measure (Fan et al., ICCV 2017): alpha object plus (1 - alpha) region similarity."""
    values = np.asarray(saliency, np.float64)
    fraction = float(truth.mean())
    if fraction == 0:
        return float(1 - values.mean())
    if fraction == 1:
        return float(values.mean())
    object_part = fraction * _object_similarity(values[truth]) + (1 - fraction) * _object_similarity(
        1 - values[~truth]
    )
    return float(max(0.0, alpha * object_part + (1 - alpha) * _region_similarity(values, truth)))


def _at_least(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of some values in 0..255 are at least t, for t = 1..255."""
    counts: NDArray[np.int64] = np.bincount(levels.ravel(), minlength=256)
    return np.asarray(counts[::-1].cumsum()[::-1][1:], np.int64)


def _object_similarity(values: NDArray[np.float64]) -> float:
    """2 x / (x^2 + 1 + sigma) over the map's values on one side of the truth (eq. 4, lambda = 0.5)."""
    mean = values.mean()
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return float(2 * mean / (mean * mean + 1 + deviation + _TINY))


def _region_similarity(values: NDArray[np.float64], truth: Mask) -> float:
    """Structural similarity of the four blocks around the truth's centroid, weighted by area (eq. 7)."""
    rows, columns = np.nonzero(truth)
    row, column = round(rows.mean()) + 1, round(columns.mean()) + 1
    total = 0.0
    for top, bottom in ((0, row), (row, truth.shape[0])):
        for left, right in ((0, column), (column, truth.shape[1])):
            block = np.s_[top:bottom, left:right]
            if values[block].size:
                total += (
                    values[block].size
                    / truth.size
                    * _structure(values[block], truth[block].astype(np.float64))
                )
    return total


def _structure(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """SSIM of two blocks without its constants (Wang et al. 2004)."""
    mean1, mean2 = first.mean(), second.mean()
    degrees = max(first.size - 1, 1)
    variance1 = ((first - mean1) ** 2).sum() / degrees
    variance2 = ((second - mean2) ** 2).sum() / degrees
    covariance = ((first - mean1) * (second - mean2)).sum() / degrees
    numerator = 4 * mean1 * mean2 * covariance
    denominator = (mean1**2 + mean2**2) * (variance1 + variance2)
    if numerator != 0:
        return float(numerator / (denominator + _TINY))
    return 1.0 if denominator == 0 else 0.0

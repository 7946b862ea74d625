"""From an image to its foreground mask: saliency, mean over regions, threshold, cleaning.

Shapes: H, W the image; h, w the working image (long side 160 pixels); R regions.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from .barrier import barrier_saliency
from .recipes import Recipe, get_recipe
from .regions import felzenszwalb, region_means


class Foreground(NamedTuple):
    """What stage one says about one image.

    Attributes:
        mask: (h, w) bool at the working size.
        saliency: (h, w) float32 in [0, 1].
        confidence: in [0, 1]; how clearly the image falls into two parts. 0 for an empty mask.
    """

    mask: NDArray[np.bool_]
    saliency: NDArray[np.float32]
    confidence: float


def working_image(image: NDArray[np.uint8], work_size: int) -> NDArray[np.uint8]:
    """Shrink (never enlarge) to a long side of `work_size` pixels by area averaging."""
    height, width = image.shape[:2]
    factor = work_size / max(height, width)
    if factor >= 1:
        return np.ascontiguousarray(image)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def otsu_split(values: NDArray[np.float32], area: NDArray[np.int64]) -> tuple[float, float]:
    """Otsu's threshold over values that weigh by area (Otsu 1979), exact, without a histogram.

    Args:
        values: (R,) one per region.
        area: (R,) pixels per region.

    Returns:
        The threshold (values above it are foreground) and the between-class share of the variance in [0, 1];
        for constant values that constant and 0.
    """
    order = np.argsort(values, kind="stable")
    value, weight = values[order].astype(np.float64), area[order].astype(np.float64)
    below, sums = np.cumsum(weight), np.cumsum(weight * value)
    total, mean = below[-1], sums[-1] / below[-1]
    variance = float((weight * (value - mean) ** 2).sum() / total)
    if len(value) < 2 or variance < 1e-9:
        return float(value[-1]), 0.0
    share = below[:-1] / total
    difference = mean * share - sums[:-1] / total
    between = difference**2 / (share * (1 - share))
    best = int(between.argmax())
    return float((value[best] + value[best + 1]) / 2), float(min(1.0, between[best] / variance))


def cleaned(mask: NDArray[np.bool_], min_part: float) -> NDArray[np.bool_]:
    """Fill holes and drop parts smaller than `min_part` of the largest one."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    height, width = mask.shape
    left, top, wide, high = stats[:, 0], stats[:, 1], stats[:, 2], stats[:, 3]
    inside = (left > 0) & (top > 0) & (left + wide < width) & (top + high < height)
    inside[0] = False
    filled: NDArray[np.bool_] = mask | inside[labels]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(filled.astype(np.uint8), connectivity=8)
    if count < 2:
        return filled
    keep = stats[:, cv2.CC_STAT_AREA] >= min_part * stats[1:, cv2.CC_STAT_AREA].max()
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def segment(image: NDArray[np.uint8], recipe: str | Recipe = "quality") -> Foreground:
    """Find the foreground of an image at the working size.

    Args:
        image: (H, W, 3) uint8 RGB, any size.
        recipe: a recipe or its name.

    Returns:
        The mask, saliency and confidence at the working size (long side 160 pixels; smaller images keep
        theirs).

    Raises:
        UserError: for an unknown recipe.
        ValueError: if `image` is not (H, W, 3) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    recipe = get_recipe(recipe)
    work = working_image(image, recipe.work_size)
    lab = cv2.cvtColor(work, cv2.COLOR_RGB2LAB).astype(np.float32)
    saliency = barrier_saliency(lab)
    labels = felzenszwalb(
        work, scale=recipe.region_scale, sigma=recipe.region_sigma, min_size=recipe.region_min_size
    )
    means = region_means(labels, saliency)
    threshold, confidence = otsu_split(means, np.bincount(labels.ravel()))
    mask = cleaned((means > threshold)[labels], recipe.min_part)
    if not mask.any():
        confidence = 0.0
    return Foreground(mask, means[labels], confidence)


def foreground(image: NDArray[np.uint8], recipe: str | Recipe = "quality") -> NDArray[np.bool_]:
    """Find the foreground of an image.

    Args:
        image: (H, W, 3) uint8 RGB, any size.
        recipe: a recipe or its name ("fast", "quality", ...).

    Returns:
        (H, W) bool at the image's own size.

    Examples:
        >>> from skimage.data import chelsea
        >>> foreground(chelsea(), "fast").shape
        (300, 451)
    """
    mask = segment(image, recipe).mask
    height, width = image.shape[:2]
    full: NDArray[np.bool_] = (
        cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    )
    return full

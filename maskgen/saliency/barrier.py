"""Minimum barrier saliency: what cannot be reached from the border without crossing a jump in colour.

Shapes: H, W pixels of the working image.

Source: J. Zhang, S. Sclaroff, Z. Lin, X. Shen, B. Price and R. Mech, "Minimum Barrier Salient Object
Detection at 80 FPS", ICCV 2015 (the variant MB+, with background colour contrast).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ...common.jit import jit

BORDER_FRACTION = 0.1  # width of the four border bands, as a share of the long side (section 3.2)


@jit("float32[:, ::1](float32[:, ::1], int64)")
def _barrier_distance(channel, passes):  # type: ignore[no-untyped-def]
    height, width = channel.shape
    distance = np.full((height, width), np.float32(1e9))
    highest = channel.copy()
    lowest = channel.copy()
    for x in range(width):
        distance[0, x] = 0.0
        distance[height - 1, x] = 0.0
    for y in range(height):
        distance[y, 0] = 0.0
        distance[y, width - 1] = 0.0
    for sweep in range(passes):
        step = 1 if sweep % 2 == 0 else -1
        for i in range(height):
            y = i if step == 1 else height - 1 - i
            for j in range(width):
                x = j if step == 1 else width - 1 - j
                value = channel[y, x]
                best = distance[y, x]
                py = y - step
                if 0 <= py < height:
                    high = max(highest[py, x], value)
                    low = min(lowest[py, x], value)
                    if high - low < best:
                        best = high - low
                        highest[y, x] = high
                        lowest[y, x] = low
                px = x - step
                if 0 <= px < width:
                    high = max(highest[y, px], value)
                    low = min(lowest[y, px], value)
                    if high - low < best:
                        best = high - low
                        highest[y, x] = high
                        lowest[y, x] = low
                distance[y, x] = best
    return distance


def barrier_distance(channel: NDArray[np.float32], passes: int = 3) -> NDArray[np.float32]:
    """Distance to the border by the cheapest path, whose cost is its highest minus its lowest value.

    Args:
        channel: (H, W) float32.
        passes: raster passes, forth and back in turn (algorithm 1; three in the paper).

    Returns:
        (H, W) float32, 0 on the border; an upper bound of the exact distance after few passes.
    """
    distance: NDArray[np.float32] = _barrier_distance(np.ascontiguousarray(channel, np.float32), passes)
    return distance


def border_contrast(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colour distance to the image's borders, whitened per border band (section 3.2, equations 8 and 9).

    The map of the band that a pixel resembles least is left out, so that an object that covers one band
    still stands out against the other three.

    Args:
        lab: (H, W, 3) float32.

    Returns:
        (H, W) float32 in [0, 1].
    """
    height, width = lab.shape[:2]
    band = max(1, round(BORDER_FRACTION * max(height, width)))
    maps = np.empty((4, height, width), np.float32)
    for number, colours in enumerate((lab[:band], lab[-band:], lab[:, :band], lab[:, -band:])):
        pixels = colours.reshape(-1, 3).astype(np.float64)
        centred = pixels - pixels.mean(axis=0)
        covariance = centred.T @ centred / len(pixels) + np.eye(3)
        whiten = np.linalg.cholesky(np.linalg.inv(covariance)).T
        shift = -whiten @ pixels.mean(axis=0)
        white = cv2.transform(lab, np.column_stack([whiten, shift]).astype(np.float32))
        maps[number] = np.sqrt(np.einsum("yxc,yxc->yx", white, white))
        maps[number] /= max(float(maps[number].max()), 1e-6)
    return minmax_scale(maps.sum(axis=0) - maps.max(axis=0))


def minmax_scale(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stretch to [0, 1]; a constant map becomes 0."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        return np.zeros_like(values, dtype=np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


def smooth_by_reconstruction(saliency: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smooth without moving edges: closing, then opening, with a kernel that grows with the salient area."""
    radius = round(0.02 * np.sqrt(float(saliency.mean()) * saliency.size))
    if radius < 1:
        return saliency
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    closed = cv2.morphologyEx(saliency, cv2.MORPH_CLOSE, kernel)
    return cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel).astype(np.float32, copy=False)


def barrier_saliency(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """MB+: barrier distance summed over the Lab channels plus border contrast, smoothed.

    Args:
        lab: (H, W, 3) float32, OpenCV's 8-bit Lab scale.

    Returns:
        (H, W) float32 in [0, 1].
    """
    planes = [np.ascontiguousarray(lab[:, :, channel]) for channel in range(3)]
    barrier = barrier_distance(planes[0]) + barrier_distance(planes[1]) + barrier_distance(planes[2])
    return minmax_scale(smooth_by_reconstruction(minmax_scale(barrier) + border_contrast(lab)))

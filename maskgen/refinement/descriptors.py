"""What a region looks like, where it lies and how it differs from the rest: raw numbers for a regressor.

Shapes: H, W pixels of the working image, R regions, D descriptors.

After H. Jiang, J. Wang, Z. Yuan, Y. Wu, N. Zheng and S. Li, "Salient Object Detection: A Discriminative
Regional Feature Integration Approach", CVPR 2013: regional property, contrast and backgroundness over several
segmentations. The descriptors here are our own, fewer choice; no colour or texture histograms are kept, only
moments.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ...common.types import Pixels
from ..segmentation.regions import felzenszwalb

# (scale, smallest region in pixels) of Felzenszwalb's segmentation at 160 pixels, fine to coarse
LEVELS = ((30.0, 15), (80.0, 30), (200.0, 60), (500.0, 120))
BAND = 0.08  # width of the border band that stands for background, as a share of the long side
CHANNELS = 6  # L, a, b, gradient, fine texture, coarse texture


def channel_stack(work: Pixels) -> NDArray[np.float32]:
    """Colour and texture of each pixel, scaled to similar ranges; (H, W, 6) float32."""
    lab = cv2.cvtColor(work.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = np.ascontiguousarray(lab[:, :, 0])
    across = cv2.Sobel(light, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REFLECT)
    down = cv2.Sobel(light, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REFLECT)
    planes = [light, lab[:, :, 1], lab[:, :, 2], np.sqrt(cv2.magnitude(across, down))]
    for sigma in (1.0, 3.0):
        mean = cv2.GaussianBlur(light, (0, 0), sigma)
        spread = cv2.GaussianBlur(light * light, (0, 0), sigma) - mean * mean
        planes.append(np.sqrt(np.maximum(spread, 0)))
    return np.stack(planes, axis=2).astype(np.float32)


def region_sums(flat: NDArray[np.int32], planes: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Sum each of (P, C) planes over regions, (R, C)."""
    return np.stack([np.bincount(flat, planes[:, c], count) for c in range(planes.shape[1])], axis=1)


def _shares_and_contact(
    labels: NDArray[np.int32], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of each image side that a region covers (R, 4), and shared boundary lengths (R, R)."""
    sides = [labels[0], labels[-1], labels[:, 0], labels[:, -1]]
    shares = np.stack([np.bincount(side, minlength=count) / len(side) for side in sides], axis=1)
    pairs = np.zeros(count * count)
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differs = one != other
        pairs += np.bincount(one[differs].astype(np.int64) * count + other[differs], minlength=count * count)
    contact = pairs.reshape(count, count)
    return shares, contact + contact.T


def describe(labels: NDArray[np.int32], channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Describe each region.

    Args:
        labels: (H, W) int32, 0 .. R-1.
        channels: (H, W, 6) from `channel_stack`.

    Returns:
        (R, D) float32.
    """
    count = int(labels.max()) + 1
    area = np.bincount(labels.ravel(), minlength=count).astype(np.float64)
    mean, spread = _moments(labels, channels, area)
    shares, contact = _shares_and_contact(labels, count)
    centre, place = _place(labels, area, shares, contact)
    described = np.column_stack(
        [
            place,
            mean,
            spread,
            _contrasts(mean, centre, area / area.sum(), contact),
            _backgroundness(mean, area / area.sum(), shares),
            np.broadcast_to(channels.std(axis=(0, 1)), (count, CHANNELS)),
        ]
    )
    return described.astype(np.float32)


def _moments(
    labels: NDArray[np.int32], planes: NDArray[np.float32], area: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of (H, W, C) planes over each region, (R, C) each."""
    flat, pixels = labels.ravel(), planes.reshape(-1, planes.shape[2])
    mean = region_sums(flat, pixels, len(area)) / area[:, None]
    square = region_sums(flat, pixels * pixels, len(area)) / area[:, None]
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _place(
    labels: NDArray[np.int32],
    area: NDArray[np.float64],
    shares: NDArray[np.float64],
    contact: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre (R, 2) as shares of the height and width; where regions lie, how large and compact they are."""
    height, width = labels.shape
    rows, columns = np.mgrid[0:height, 0:width]
    places = np.stack([(rows + 0.5) / height, (columns + 0.5) / width], axis=2).astype(np.float32)
    centre, extent = _moments(labels, places, area)
    off_centre = np.abs(centre - 0.5)
    place = [
        centre[:, 0],
        off_centre,
        np.hypot(*off_centre.T),
        extent,
        area / area.sum(),
        contact.sum(axis=1) / np.sqrt(area),
        shares[:, :2],
        shares[:, 2:].min(axis=1),
        shares[:, 2:].max(axis=1),
        shares.sum(axis=1),
    ]
    return centre, np.column_stack(place)


def _contrasts(
    mean: NDArray[np.float64],
    centre: NDArray[np.float64],
    fraction: NDArray[np.float64],
    contact: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Difference of each channel from all regions, from near ones and from touching ones, (R, 3 C)."""
    difference = np.abs(mean[:, None] - mean[None])  # (R, R, C)
    apart = ((centre[:, None] - centre[None]) ** 2).sum(axis=2)
    near = np.exp(-apart / (2 * 0.25**2)) * fraction
    weights = (
        np.broadcast_to(fraction, near.shape),
        near / near.sum(axis=1, keepdims=True),
        contact / np.maximum(contact.sum(axis=1, keepdims=True), 1),
    )
    return np.column_stack([np.einsum("ij,ijc->ic", weight, difference) for weight in weights])


def _backgroundness(
    mean: NDArray[np.float64], fraction: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Likeness of colour and texture to what lies along the four sides, and to everything, (R, 10)."""
    difference = np.abs(mean[:, None] - mean[None])
    colour = np.sqrt((difference[:, :, :3] ** 2).sum(axis=2))
    border = shares / np.maximum(shares.sum(axis=0), 1e-9)  # (R, 4) each side's colours by length
    to_sides = np.sort(colour @ border, axis=1)  # mean distance to each side, nearest first
    alike = np.exp(-(colour**2) / (2 * 12.0**2))
    like_sides = np.sort(alike @ border, axis=1)[:, ::-1]
    texture = difference[:, :, 3:].sum(axis=2) @ border.mean(axis=1)
    return np.column_stack([to_sides, like_sides, alike @ fraction, texture])


def describe_levels(work: Pixels) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Segment at every level and describe; one (labels, descriptors) per level."""
    channels = channel_stack(work)
    levels = []
    for scale, min_size in LEVELS:
        labels = felzenszwalb(work, scale=scale, min_size=min_size)
        levels.append((labels, describe(labels, channels)))
    return levels

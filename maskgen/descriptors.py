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

from .regions import felzenszwalb

# (scale, smallest region in pixels) of Felzenszwalb's segmentation at 160 pixels, fine to coarse
LEVELS = ((30.0, 15), (80.0, 30), (200.0, 60), (500.0, 120))
BAND = 0.08  # width of the border band that stands for background, as a share of the long side
CHANNELS = 6  # L, a, b, gradient, fine texture, coarse texture


def channel_stack(work: NDArray[np.uint8]) -> NDArray[np.float32]:
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
    height, width = labels.shape
    count = int(labels.max()) + 1
    flat = labels.ravel()
    area = np.bincount(flat, minlength=count).astype(np.float64)
    pixels = channels.reshape(-1, CHANNELS)
    mean = region_sums(flat, pixels, count) / area[:, None]
    spread = np.sqrt(np.maximum(region_sums(flat, pixels * pixels, count) / area[:, None] - mean**2, 0))

    rows, columns = np.mgrid[0:height, 0:width]
    places = np.stack([(rows.ravel() + 0.5) / height, (columns.ravel() + 0.5) / width], axis=1).astype(
        np.float32
    )
    centre = region_sums(flat, places, count) / area[:, None]
    extent = np.sqrt(np.maximum(region_sums(flat, places * places, count) / area[:, None] - centre**2, 0))
    shares, contact = _shares_and_contact(labels, count)
    share = area / area.sum()
    off_centre = np.abs(centre - 0.5)
    place = np.column_stack(
        [
            centre[:, 0],
            off_centre,
            np.hypot(*off_centre.T),
            extent,
            share,
            contact.sum(axis=1) / np.sqrt(area),
            shares[:, :2],
            shares[:, 2:].min(axis=1),
            shares[:, 2:].max(axis=1),
            shares.sum(axis=1),
        ]
    )

    difference = np.abs(mean[:, None] - mean[None])  # (R, R, C)
    apart = ((centre[:, None] - centre[None]) ** 2).sum(axis=2)
    near = np.exp(-apart / (2 * 0.25**2)) * share
    contrast_all = np.einsum("ij,ijc->ic", np.broadcast_to(share, (count, count)), difference)
    contrast_near = np.einsum("ij,ijc->ic", near / near.sum(axis=1, keepdims=True), difference)
    touching = contact / np.maximum(contact.sum(axis=1, keepdims=True), 1)
    contrast_touching = np.einsum("ij,ijc->ic", touching, difference)

    colour = np.sqrt((difference[:, :, :3] ** 2).sum(axis=2))
    border = shares / np.maximum(shares.sum(axis=0), 1e-9)  # (R, 4) each side's colours by length
    to_sides = np.sort(colour @ border, axis=1)  # mean distance to each side, nearest first
    alike = np.exp(-(colour**2) / (2 * 12.0**2))
    like_sides = np.sort(alike @ border, axis=1)[:, ::-1]
    like_all = alike @ share
    texture = difference[:, :, 3:].sum(axis=2) @ border.mean(axis=1)
    described = np.column_stack(
        [
            place,
            mean,
            spread,
            contrast_all,
            contrast_near,
            contrast_touching,
            to_sides,
            like_sides,
            like_all,
            texture,
            np.broadcast_to(channels.std(axis=(0, 1)), (count, CHANNELS)),
        ]
    )
    return described.astype(np.float32)


def described_levels(work: NDArray[np.uint8]) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Segment at every level and describe; one (labels, descriptors) per level."""
    channels = channel_stack(work)
    levels = []
    for scale, min_size in LEVELS:
        labels = felzenszwalb(work, scale=scale, min_size=min_size)
        levels.append((labels, describe(labels, channels)))
    return levels

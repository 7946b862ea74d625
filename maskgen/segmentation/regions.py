"""Regions of an image: Felzenszwalb and Huttenlocher's graph-based segmentation.

Shapes: H, W pixels of the working image, R regions.

Source: P. Felzenszwalb and D. Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ...common.jit import jit
from ...common.types import Pixels

# Steps per grey level at which edge weights are sorted. Ties below this step are broken by position; coarser
# than 1/2048 of a grey level gives visibly other regions.
WEIGHT_STEPS = 2048


@jit("int32(int32[::1], int32)")
def _root(parent, node):  # type: ignore[no-untyped-def]
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@jit("Tuple((int32[::1], int32[::1], float32[::1]))(float32[:, :, ::1])")
def _grid_edges(image):  # type: ignore[no-untyped-def]
    """Each pixel's edges to the right, below, below right and above right: an 8-connected grid."""
    height, width, channels = image.shape
    capacity = 4 * height * width
    first = np.empty(capacity, np.int32)
    second = np.empty(capacity, np.int32)
    weight = np.empty(capacity, np.float32)
    count = 0
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                ny = y + (0, 1, 1, -1)[direction]
                nx = x + (1, 0, 1, 1)[direction]
                if ny < 0 or ny >= height or nx >= width:
                    continue
                total = np.float32(0.0)
                for c in range(channels):
                    difference = image[y, x, c] - image[ny, nx, c]
                    total += difference * difference
                first[count] = y * width + x
                second[count] = ny * width + nx
                weight[count] = np.sqrt(total)
                count += 1
    return first[:count], second[:count], weight[:count]


@jit("int32[::1](float32[::1])")
def _ascending(weight):  # type: ignore[no-untyped-def]
    """Order edges by weight, to 1/2048 of a grey level, in two stable counting passes of 10 bits."""
    count = len(weight)
    order = np.arange(count).astype(np.int32)
    scratch = np.empty(count, np.int32)
    key = np.empty(count, np.int32)
    for i in range(count):
        key[i] = min(int(weight[i] * WEIGHT_STEPS), (1 << 20) - 1)
    for shift in (0, 10):
        start = np.zeros(1025, np.int32)
        for i in range(count):
            start[((key[order[i]] >> shift) & 1023) + 1] += 1
        for i in range(1024):
            start[i + 1] += start[i]
        for i in range(count):
            digit = (key[order[i]] >> shift) & 1023
            scratch[start[digit]] = order[i]
            start[digit] += 1
        order, scratch = scratch, order
    return order


@jit("int32[:, ::1](float32[:, :, ::1], float64, int64)")
def _felzenszwalb(image, scale, min_size):  # type: ignore[no-untyped-def]
    height, width, _ = image.shape
    first, second, weight = _grid_edges(image)
    order = _ascending(weight)
    count = len(order)
    parent = np.arange(height * width).astype(np.int32)
    size = np.ones(height * width, np.int32)
    internal = np.zeros(height * width, np.float32)
    for i in range(count):
        edge = order[i]
        a = _root(parent, first[edge])
        b = _root(parent, second[edge])
        if a == b:
            continue
        w = weight[edge]
        if w < min(internal[a] + scale / size[a], internal[b] + scale / size[b]):
            parent[b] = a
            size[a] += size[b]
            internal[a] = w
    for i in range(count):
        edge = order[i]
        a = _root(parent, first[edge])
        b = _root(parent, second[edge])
        if a != b and (size[a] < min_size or size[b] < min_size):
            parent[b] = a
            size[a] += size[b]

    name = np.full(height * width, -1, np.int32)
    labels = np.empty((height, width), np.int32)
    regions = 0
    for y in range(height):
        for x in range(width):
            root = _root(parent, np.int32(y * width + x))
            if name[root] < 0:
                name[root] = regions
                regions += 1
            labels[y, x] = name[root]
    return labels


def felzenszwalb(image: Pixels, *, scale: float, sigma: float = 0.8, min_size: int) -> NDArray[np.int32]:
    """Segment an image into regions that are flat inside and differ from their neighbours.

    Args:
        image: (H, W, 3) uint8.
        scale: k of the paper, in grey levels x pixels; larger gives larger regions. The number means the same
            as in scikit-image's `felzenszwalb`.
        sigma: standard deviation of the Gaussian smoothing before, in pixels; 0 for none.
        min_size: smaller regions are merged into a neighbour, in pixels.

    Returns:
        (H, W) int32 labels 0 .. R-1, numbered in raster order of each region's first pixel.
    """
    smooth = image.astype(np.float32)
    if sigma > 0:
        reach = 2 * int(4 * sigma + 0.5) + 1
        blurred = cv2.GaussianBlur(smooth, (reach, reach), sigma, borderType=cv2.BORDER_REFLECT)
        smooth = blurred.astype(np.float32, copy=False)
    labels: NDArray[np.int32] = _felzenszwalb(np.ascontiguousarray(smooth), float(scale), int(min_size))
    return labels


def region_means(labels: NDArray[np.int32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average `values` (H, W) over each region; returns (R,) float32."""
    area = np.bincount(labels.ravel())
    total = np.bincount(labels.ravel(), weights=values.ravel())
    means: NDArray[np.float32] = (total / area).astype(np.float32)
    return means

"""Superpixels and the graph they span: the ground on which boundary connectivity and manifold ranking work.

Shapes: H, W pixels of the working image, N superpixels.

Source: R. Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", TPAMI 2012.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...common.jit import jit

BOTTOM = 1  # row of `SuperpixelGraph.sides`


@jit("int32[:, ::1](float32[:, :, ::1], int64, float64, int64)")
def slic(lab, step, compactness, rounds):  # type: ignore[no-untyped-def]
    """Cluster pixels by colour and place: (H, W, 3) to (H, W) labels, some numbers possibly unused."""
    height, width, _ = lab.shape
    rows, columns = max(1, height // step), max(1, width // step)
    count = rows * columns
    centre = np.empty((count, 5), np.float32)
    for r in range(rows):
        for c in range(columns):
            y = int((r + 0.5) * height / rows)
            x = int((c + 0.5) * width / columns)
            centre[r * columns + c, 0:3] = lab[y, x]
            centre[r * columns + c, 3] = y
            centre[r * columns + c, 4] = x
    labels = np.zeros((height, width), np.int32)
    distance = np.empty((height, width), np.float32)
    reach_y, reach_x = int(height / rows) + 1, int(width / columns) + 1
    spatial = np.float32((compactness / step) ** 2)
    for _ in range(rounds):
        distance[:] = np.float32(1e12)
        for k in range(count):
            l0, a0, b0, y0, x0 = centre[k]
            for y in range(max(0, int(y0) - reach_y), min(height, int(y0) + reach_y + 1)):
                dy = spatial * (y - y0) * (y - y0)
                for x in range(max(0, int(x0) - reach_x), min(width, int(x0) + reach_x + 1)):
                    dl, da, db = lab[y, x, 0] - l0, lab[y, x, 1] - a0, lab[y, x, 2] - b0
                    d = dl * dl + da * da + db * db + dy + spatial * (x - x0) * (x - x0)
                    if d < distance[y, x]:
                        distance[y, x] = d
                        labels[y, x] = k
        total = np.zeros((count, 6), np.float64)
        for y in range(height):
            for x in range(width):
                k = labels[y, x]
                total[k, 0] += lab[y, x, 0]
                total[k, 1] += lab[y, x, 1]
                total[k, 2] += lab[y, x, 2]
                total[k, 3] += y
                total[k, 4] += x
                total[k, 5] += 1
        for k in range(count):
            if total[k, 5] > 0:
                for c in range(5):
                    centre[k, c] = np.float32(total[k, c] / total[k, 5])
    return labels


@jit(
    "Tuple((int32[:, ::1], float64[:, ::1], boolean[:, ::1], boolean[:, ::1]))"
    "(int32[:, ::1], float32[:, :, ::1], int64)"
)
def _gather(raw, lab, bound):  # type: ignore[no-untyped-def]
    """Number the labels without gaps; sum colour, place and area of each; note neighbours and sides."""
    height, width = raw.shape
    number = np.zeros(bound, np.int32)
    for y in range(height):
        for x in range(width):
            number[raw[y, x]] = 1
    count = 0
    for k in range(bound):
        if number[k]:
            number[k] = count
            count += 1
    labels = np.empty((height, width), np.int32)
    total = np.zeros((count, 6), np.float64)
    adjacent = np.zeros((count, count), np.bool_)
    for y in range(height):
        for x in range(width):
            k = number[raw[y, x]]
            labels[y, x] = k
            for c in range(3):
                total[k, c] += lab[y, x, c]
            total[k, 3] += y
            total[k, 4] += x
            total[k, 5] += 1
            if x > 0:
                adjacent[k, labels[y, x - 1]] = adjacent[labels[y, x - 1], k] = True
            if y > 0:
                adjacent[k, labels[y - 1, x]] = adjacent[labels[y - 1, x], k] = True
    sides = np.zeros((4, count), np.bool_)
    for x in range(width):
        sides[0, labels[0, x]] = sides[1, labels[height - 1, x]] = True
    for y in range(height):
        sides[2, labels[y, 0]] = sides[3, labels[y, width - 1]] = True
    for k in range(count):
        adjacent[k, k] = False
    return labels, total, adjacent, sides


@jit("float32[:, ::1](float32[:, ::1])")
def _distances(points):  # type: ignore[no-untyped-def]
    count, channels = points.shape
    distance = np.zeros((count, count), np.float32)
    for i in range(count):
        for j in range(i):
            total = np.float32(0)
            for c in range(channels):
                difference = points[i, c] - points[j, c]
                total += difference * difference
            distance[i, j] = distance[j, i] = np.sqrt(total)
    return distance


class SuperpixelGraph(NamedTuple):
    """Superpixels with what the saliency methods read of them.

    Attributes:
        labels: (H, W) int32, 0 .. N-1, no number left out.
        colour: (N, 3) float32 mean CIE Lab (L in 0 .. 100).
        position: (N, 2) float32 mean row and column as shares of the height and width.
        area: (N,) int64 pixels.
        adjacent: (N, N) bool, share an edge; symmetric, False on the diagonal.
        sides: (4, N) bool, touches the top, bottom, left, right border.
        border: (N,) bool, touches any of them.
        distance: (N, N) float32 Euclidean Lab distance.
        linked: (N, N) bool, adjacent, two steps apart, or both on the border; False on the diagonal.
    """

    labels: NDArray[np.int32]
    colour: NDArray[np.float32]
    position: NDArray[np.float32]
    area: NDArray[np.int64]
    adjacent: NDArray[np.bool_]
    sides: NDArray[np.bool_]
    border: NDArray[np.bool_]
    distance: NDArray[np.float32]
    linked: NDArray[np.bool_]


def superpixel_graph(
    lab: NDArray[np.float32], count: int = 200, compactness: float = 20.0
) -> SuperpixelGraph:
    """Cut an image into about `count` superpixels and link neighbours.

    Args:
        lab: (H, W, 3) float32 CIE Lab, L in 0 .. 100.
        count: how many superpixels to aim at.
        compactness: weight of position against colour; larger gives squarer superpixels.
    """
    height, width = lab.shape[:2]
    lab = np.ascontiguousarray(lab, np.float32)
    step = max(1, int(np.sqrt(height * width / count)))
    raw = slic(lab, step, float(compactness), 3)
    labels, total, adjacent, sides = _gather(raw, lab, int(raw.max()) + 1)
    area = total[:, 5]
    colour = (total[:, :3] / area[:, None]).astype(np.float32)
    position = (total[:, 3:5] / area[:, None] / (height, width)).astype(np.float32)
    border = sides.any(axis=0)
    return SuperpixelGraph(
        labels,
        colour,
        position,
        area.astype(np.int64),
        adjacent,
        sides,
        border,
        _distances(colour),
        _two_ring(adjacent, border),
    )


def _two_ring(adjacent: NDArray[np.bool_], border: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Adjacency plus neighbours of neighbours and all pairs on the border, (N, N) bool."""
    link = adjacent.astype(np.float32)
    linked = (link @ link > 0) | adjacent | (border[:, None] & border[None])
    np.fill_diagonal(linked, False)
    widened: NDArray[np.bool_] = linked
    return widened

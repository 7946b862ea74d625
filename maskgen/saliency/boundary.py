"""Boundary connectivity saliency: background is what reaches the border along a broad front.

Shapes: N superpixels.

Source: W. Zhu, S. Liang, Y. Wei and J. Sun, "Saliency Optimization from Robust Background Detection",
CVPR 2014.
"""

import numpy as np
from numpy.typing import NDArray

from ...common.jit import jit
from .superpixels import BOTTOM, SuperpixelGraph

SIGMA_COLOUR = 10.0  # Lab units, equations 3 and 9
SIGMA_SPACE = 0.25  # share of the image side, equation 7
SIGMA_BOUNDARY = 1.0  # equation 6
SMOOTHNESS_FLOOR = 0.1  # mu, equation 9
UNLINKED = np.float32(1e6)  # cost of an edge that is not there


@jit("float32[:, ::1](float32[:, ::1])")
def all_shortest_paths(cost):  # type: ignore[no-untyped-def]
    """Floyd and Warshall: (N, N) edge costs to (N, N) path lengths."""
    count = cost.shape[0]
    path = cost.copy()
    for k in range(count):
        tail = path[k].copy()  # a row of its own, so that the compiler knows that writing does not change it
        for i in range(count):
            head = path[i, k]
            if head < UNLINKED:
                for j in range(count):
                    path[i, j] = min(path[i, j], head + tail[j])
    return path


def boundary_connectivity(graph: SuperpixelGraph, bottom: float = 1.0) -> NDArray[np.float32]:
    """Border length over the square root of the area of each superpixel's soft region (equation 4)."""
    linked = graph.adjacent | (graph.border[:, None] & graph.border[None])
    cost = np.where(linked, graph.distance, UNLINKED)
    np.fill_diagonal(cost, 0.0)
    geodesic = all_shortest_paths(cost)
    belongs = np.exp(-(geodesic**2) / (2 * SIGMA_COLOUR**2))
    length = graph.border.astype(np.float32)
    length[graph.sides[BOTTOM] & ~np.delete(graph.sides, BOTTOM, axis=0).any(axis=0)] = bottom
    connectivity: NDArray[np.float32] = (belongs @ length) / np.sqrt(belongs.sum(axis=1))
    return connectivity


def boundary_saliency(graph: SuperpixelGraph, bottom: float = 1.0) -> NDArray[np.float32]:
    """Weighted contrast against the background, cleaned by one least-squares problem (equations 5 to 10).

    Args:
        graph: the superpixels.
        bottom: weight of the bottom border as evidence for background; 1 in the paper. Objects stand on the
            ground and people are cut by the lower edge, so less is better (docs/masks.md).

    Returns:
        (N,) float32, about [0, 1].
    """
    distance = graph.distance
    connectivity = boundary_connectivity(graph, bottom)
    background = 1 - np.exp(-(connectivity**2) / (2 * SIGMA_BOUNDARY**2))
    offset = graph.position[:, None] - graph.position[None]
    near = np.exp(-(offset**2).sum(axis=2) / (2 * SIGMA_SPACE**2))
    contrast = (distance * near) @ background
    contrast = contrast / max(float(contrast.max()), 1e-6)
    smooth = np.where(graph.linked, np.exp(-(distance**2) / (2 * SIGMA_COLOUR**2)) + SMOOTHNESS_FLOOR, 0.0)
    system = np.diag(smooth.sum(axis=1) + background + contrast + 1e-6) - smooth
    saliency: NDArray[np.float32] = np.linalg.solve(system, contrast).astype(np.float32)
    return saliency

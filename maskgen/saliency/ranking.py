"""Manifold ranking saliency: rank superpixels by how much they resemble the borders, then the found object.

Shapes: N superpixels.

Source: C. Yang, L. Zhang, H. Lu, X. Ruan and M.-H. Yang, "Saliency Detection via Graph-Based Manifold
Ranking", CVPR 2013.
"""

import numpy as np
from numpy.typing import NDArray

from .superpixels import BOTTOM, SuperpixelGraph

ALPHA = 0.99  # equation 4
SIGMA_SQUARED = 0.1  # of colour distances scaled to [0, 1], equation 5


def ranking_saliency(
    graph: SuperpixelGraph, sigma_squared: float = SIGMA_SQUARED, bottom: float = 1.0
) -> NDArray[np.float32]:
    """Rank by the four borders, multiply the complements, then rank by what stands out (sections 4.1, 4.2).

    Args:
        graph: the superpixels.
        sigma_squared: colour width, of distances scaled to [0, 1].
        bottom: exponent of the bottom border's map in the product; 1 in the paper, see `boundary_saliency`.

    Returns:
        (N,) float32 in [0, 1].
    """
    distance = graph.distance / max(float(graph.distance.max()), 1e-6)
    weight = np.where(graph.linked, np.exp(-distance / sigma_squared), 0.0)
    degree = weight.sum(axis=1) + 1e-6
    rank = np.linalg.inv(np.diag(degree) - ALPHA * weight)
    np.fill_diagonal(rank, 0.0)
    unlike_borders = np.ones(len(degree))
    for number, side in enumerate(graph.sides):
        similarity = rank @ side
        unlike = 1 - similarity / max(float(similarity.max()), 1e-12)
        unlike_borders *= unlike**bottom if number == BOTTOM else unlike
    query = unlike_borders >= unlike_borders.mean()
    saliency = rank @ query
    low, high = float(saliency.min()), float(saliency.max())
    if high - low < 1e-12:
        return np.zeros(len(degree), np.float32)
    scaled: NDArray[np.float32] = ((saliency - low) / (high - low)).astype(np.float32)
    return scaled

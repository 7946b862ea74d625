"""Which images are near each other: by the cosine of their vectors, as kNN evaluations compare them.

Vectors are taken as they are, not centred: after a last ReLU no number in them is below 0, so even unrelated
images have a cosine far above 0, and thresholds belong to one backbone.
Shape legend: N images, D vector, Q queries, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1024  # rows compared at once
MOST_PAIRS = 100_000  # kept, the nearest


def nearest(vectors: Tensor, queries: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """The k most similar other images of some.

    Args:
        vectors: (N, D).
        queries: Q rows.
        k: cut to N - 1.

    Returns:
        Cosines and rows, (Q, k) each, the nearest first.
    """
    unit = functional.normalize(vectors.float(), dim=1)
    chosen = torch.as_tensor(list(queries), device=unit.device)
    cosines = unit[chosen] @ unit.T
    cosines[torch.arange(len(chosen), device=unit.device), chosen] = -2.0  # never itself
    found = cosines.topk(min(k, len(unit) - 1), dim=1)
    return found.values, found.indices


@dataclass(frozen=True)
class Duplicates:
    """Pairs of images that are nearly the same, the most alike first.

    `pairs` are (row, row, cosine), the lower row first; `count` is how many there are, also those that were
    not kept.
    """

    pairs: list[tuple[int, int, float]]
    count: int


def near_duplicates(
    vectors: Tensor,
    threshold: float,
    *,
    most: int = MOST_PAIRS,
    advance: Callable[[int], None] = lambda done: None,
) -> Duplicates:
    """All pairs whose cosine is above a threshold; the work grows with the square of N.

    Args:
        vectors: (N, D).
        threshold: cosine, under 1.
        most: pairs that are kept.
        advance: called with the rows that are done.
    """
    unit = functional.normalize(vectors.float(), dim=1)
    kept: list[tuple[int, int, float]] = []
    count = 0
    for start in range(0, len(unit), CHUNK):
        rows = unit[start : start + CHUNK]
        cosines = rows @ unit[start:].T
        above = torch.triu(cosines > threshold, diagonal=1).nonzero()
        count += len(above)
        values = cosines[above[:, 0], above[:, 1]]
        places = (above + start).tolist()
        kept += [
            (first, second, value) for (first, second), value in zip(places, values.tolist(), strict=True)
        ]
        kept = sorted(kept, key=lambda pair: (-pair[2], pair[0], pair[1]))[:most]
        advance(len(rows))
    return Duplicates(kept, count)

"""InfoNCE within a batch, as in MoCo v3. Shape legend: B queries, K keys of all processes, D embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import l2_normalize


def batch_info_nce(query: Tensor, keys: Tensor, *, temperature: float, first: int = 0) -> Tensor:
    """Cross-entropy of each query against the keys of its whole batch (arXiv 2104.02057, algorithm 1).

    MoCo v3 multiplies this by 2 * temperature.

    Args:
        query: (B, D), normalised here; the only input that takes a gradient.
        keys: (K, D), normalised here; key `first` + i belongs to query i.
        temperature: divides the cosines.
        first: place of this process's first key among all.

    Returns:
        Scalar, mean over B; log K when all similarities are equal.
    """
    query, keys = l2_normalize(query), l2_normalize(keys.detach())
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ keys.T / temperature
    return F.cross_entropy(logits, first + torch.arange(len(query), device=query.device))

"""Instance-level losses: NT-Xent (SimCLR), InfoNCE against a queue (MoCo), negative cosine (BYOL)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .common import CHUNK_LOGITS, l2_normalize, negatives_log_sum_exp, to_float32


def nt_xent(z1: Tensor, z2: Tensor, *, temperature: float, chunk_logits: int = CHUNK_LOGITS) -> Tensor:
    """NT-Xent, equation 1 of SimCLR (arXiv 2002.05709): 2B-way cross-entropy, own entry left out.

    Args:
        z1, z2: (B, D) embeddings of two views, normalised here. Under several processes: gathered from all.
        temperature: divides the cosines.
        chunk_logits: most logits alive at once; more are computed again, in row chunks, for the gradient.

    Returns:
        Scalar, mean over the 2B rows; log(2B - 1) when all embeddings are equally alike.
    """
    embeddings = l2_normalize(torch.cat([z1, z2]))
    rows = len(embeddings)
    step = max(1, chunk_logits // rows)
    with torch.autocast(embeddings.device.type, enabled=False):
        if step >= rows:
            return _rows_nt_xent(embeddings, 0, rows, temperature) / rows
        parts = [
            checkpoint(
                _rows_nt_xent, embeddings, start, min(start + step, rows), temperature, use_reentrant=False
            )
            for start in range(0, rows, step)
        ]
        return torch.stack(parts).sum() / rows


def _rows_nt_xent(embeddings: Tensor, start: int, stop: int, temperature: float) -> Tensor:
    """Sum of NT-Xent over the rows start to stop of unit embeddings (2B, D)."""
    anchors = torch.arange(start, stop, device=embeddings.device)
    logits = embeddings[start:stop] @ embeddings.T / temperature
    own = anchors[:, None] == torch.arange(len(embeddings), device=embeddings.device)
    partner = (anchors + len(embeddings) // 2) % len(embeddings)
    return F.cross_entropy(logits.masked_fill(own, -torch.inf), partner, reduction="sum")


def info_nce(
    query: Tensor, key: Tensor, queue: Tensor, *, temperature: float, chunk_logits: int = CHUNK_LOGITS
) -> Tensor:
    """InfoNCE of each query against its key and a queue, equation 1 of MoCo (arXiv 1911.05722).

    Args:
        query: (B, D), normalised here; the only input that takes a gradient.
        key: (B, D), normalised here.
        queue: (K, D) unit rows, negatives of every query.
        temperature: divides the cosines.
        chunk_logits: most logits alive at once.

    Returns:
        Scalar, mean over B; log(K + 1) when all similarities are equal.
    """
    query, key = l2_normalize(query), l2_normalize(key.detach())
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * key).sum(dim=1) / temperature
        negative = negatives_log_sum_exp(
            query, to_float32(queue.detach()), temperature=temperature, chunk_logits=chunk_logits
        )
    return (torch.logaddexp(positive, negative) - positive).mean()


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos, the squared distance of unit vectors: equation 2 of BYOL (arXiv 2006.07733).

    Args:
        prediction: (B, D), takes the gradient.
        target: (B, D), detached here.

    Returns:
        Scalar, mean over B; 2 when the two are unrelated.
    """
    return (2 - 2 * (l2_normalize(prediction) * l2_normalize(target.detach())).sum(dim=-1)).mean()

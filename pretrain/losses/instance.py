"""Instance-level losses: NT-Xent (SimCLR), InfoNCE against a queue (MoCo), negative cosine (BYOL)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import CHUNK_LOGITS, negatives_log_sum_exp, precise, unit


def nt_xent(z1: Tensor, z2: Tensor, *, temperature: float) -> Tensor:
    """NT-Xent, equation 1 of SimCLR (arXiv 2002.05709): 2B-way cross-entropy, own entry left out.

    Args:
        z1, z2: (B, D) embeddings of two views, normalised here. Under several processes: gathered from all.
        temperature: divides the cosines.

    Returns:
        Scalar, mean over the 2B rows; log(2B - 1) when all embeddings are equally alike.
    """
    embeddings = unit(torch.cat([z1, z2]))
    batch = len(z1)
    with torch.autocast(embeddings.device.type, enabled=False):
        logits = embeddings @ embeddings.T / temperature
    logits = logits.masked_fill(torch.eye(2 * batch, dtype=torch.bool, device=logits.device), -torch.inf)
    partner = torch.arange(2 * batch, device=logits.device).roll(batch)
    return F.cross_entropy(logits, partner)


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
    query, key = unit(query), unit(key.detach())
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * key).sum(dim=1) / temperature
        negative = negatives_log_sum_exp(
            query, precise(queue.detach()), temperature=temperature, chunk_logits=chunk_logits
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
    return (2 - 2 * (unit(prediction) * unit(target.detach())).sum(dim=-1)).mean()

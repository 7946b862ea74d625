"""What several losses share: precision, and a log-sum-exp over many negatives that keeps no logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits alive at once, 64 MiB in float32; more rows are taken in chunks of at most this many.
CHUNK_LOGITS = 2**24


def to_float32(values: Tensor) -> Tensor:
    """Raise to float32 what is narrower; float32 and float64 stay."""
    return values if values.dtype == torch.float64 else values.float()


def l2_normalize(values: Tensor, dim: int = -1) -> Tensor:
    """Normalise to length one along `dim`, in float32 at least; a zero vector stays zero."""
    return F.normalize(to_float32(values), dim=dim)


class _NegativesLogSumExp(torch.autograd.Function):
    """log sum_k exp(query . negative_k / temperature) in row chunks; keeps (R, D) for backward, no logits."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, negatives: Tensor, temperature: float, rows: int) -> Tensor:
        sums, pulls = [], []
        for part in torch.split(query, rows):
            logits = (part @ negatives.T).div_(temperature)
            top = logits.amax(dim=1, keepdim=True)
            weights = logits.sub_(top).exp_()
            total = weights.sum(dim=1, keepdim=True)
            sums.append((top + total.log()).squeeze(1))
            if ctx.needs_input_grad[0]:
                # the gradient of a log-sum-exp is the mean negative under the softmax
                pulls.append((weights @ negatives).div_(total * temperature))
        if pulls:
            ctx.save_for_backward(torch.cat(pulls))
        return torch.cat(sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        (pull,) = ctx.saved_tensors
        return gradients[0][:, None] * pull, None, None, None


def negatives_log_sum_exp(
    query: Tensor, negatives: Tensor, *, temperature: float, chunk_logits: int = CHUNK_LOGITS
) -> Tensor:
    """Log-sum-exp of the scaled dot products with shared negatives, without ever holding all logits.

    Args:
        query: (R, D), gradients flow.
        negatives: (K, D), no gradient flows (queues and key encoders have none).
        temperature: divides the dot products.
        chunk_logits: logits alive at once, bounds the memory to rows * K of this many.

    Returns:
        (R,) values; -inf for K = 0.
    """
    if negatives.requires_grad:
        raise ValueError("negatives of this loss take no gradient; detach them")
    if not len(negatives):
        return query.new_full((len(query),), -torch.inf)
    rows = max(1, chunk_logits // len(negatives))
    result: Tensor = _NegativesLogSumExp.apply(query, negatives.to(query.dtype), temperature, rows)
    return result

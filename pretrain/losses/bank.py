"""Losses against a memory bank: PIRL (arXiv 1912.01991) and NPID (arXiv 1805.01978)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import CHUNK_LOGITS, l2_normalize, to_float32


class _GatheredScores(torch.autograd.Function):
    """Dot products of each row with its own bank rows, in row chunks: (B, K, D) is never held whole."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, bank: Tensor, rows: Tensor, step: int) -> Tensor:
        ctx.save_for_backward(bank, rows)
        ctx.step = step
        parts = zip(torch.split(embedding, step), torch.split(rows, step), strict=True)
        return torch.cat([torch.einsum("bd,bkd->bk", part, bank[index]) for part, index in parts])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        bank, rows = ctx.saved_tensors
        parts = zip(torch.split(gradients[0], ctx.step), torch.split(rows, ctx.step), strict=True)
        pulled = [torch.einsum("bk,bkd->bd", part, bank[index]) for part, index in parts]
        return torch.cat(pulled), None, None, None


def bank_scores(embedding: Tensor, bank: Tensor, index: Tensor, negatives: Tensor) -> Tensor:
    """Cosines of each embedding with its own bank row and with its negatives.

    Args:
        embedding: (B, D), normalised here; the only input that takes a gradient.
        bank: (n, D) unit rows. Rows written after this call but before the backward pass would change the
            gradient: write the bank after the loss is differentiated, or give a copy.
        index: (B,) own rows.
        negatives: (B, K) rows of each sample, or (K,) rows that all share; a sample that meets its own
            row among them scores -inf there.

    Returns:
        (B, 1 + K), the positive first.
    """
    query, bank = l2_normalize(embedding), to_float32(bank.detach())
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * bank[index]).sum(dim=1, keepdim=True)
        if negatives.dim() == 1:
            own = negatives[None, :] == index[:, None]
            shared = (query @ bank[negatives].T).masked_fill(own, -torch.inf)
            return torch.cat([positive, shared], dim=1)
        if _products_are_cheaper(query, bank, negatives):
            others = (query @ bank.T).gather(1, negatives)
        else:
            step = max(1, CHUNK_LOGITS // max(1, negatives.shape[1] * bank.shape[1]))
            others = _GatheredScores.apply(query, bank, negatives, step)
        return torch.cat([positive, others], dim=1)


def _products_are_cheaper(query: Tensor, bank: Tensor, negatives: Tensor) -> bool:
    """Whether to multiply with every bank row and pick, or to copy each sample's K rows and multiply those.

    A core multiplies some hundred rows in the time in which it copies one; a GPU copies fast, and its sum of
    what was picked twice would have no fixed order.
    """
    rows = len(bank)
    few = rows <= 64 * negatives.shape[1] and len(query) * rows <= CHUNK_LOGITS
    return query.device.type == "cpu" and few


def scores_info_nce(scores: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of the positive, first of the scores (B, 1 + K) of `bank_scores`; mean over B."""
    target = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    return F.cross_entropy(scores / temperature, target)


def scores_nce(scores: Tensor, bank_rows: int, *, temperature: float, partition: Tensor) -> Tensor:
    """Noise-contrastive estimation on the scores (B, 1 + K) of `bank_scores`; see `bank_nce`."""
    noise = math.log((scores.shape[1] - 1) / bank_rows)
    odds = scores / temperature - to_float32(partition).to(scores.dtype).log() - noise
    # log(P / (P + c)) = -softplus(-odds), log(c / (P + c)) = -softplus(odds): nothing overflows
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(dim=1)).mean()


def bank_info_nce(
    embedding: Tensor, bank: Tensor, index: Tensor, negatives: Tensor, *, temperature: float
) -> Tensor:
    """Cross-entropy of the own bank row against the negatives; arguments as in `bank_scores`.

    Returns:
        Scalar, mean over B; log(K + 1) when all similarities are equal.
    """
    return scores_info_nce(bank_scores(embedding, bank, index, negatives), temperature=temperature)


def bank_nce(
    embedding: Tensor,
    bank: Tensor,
    index: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    partition: Tensor,
) -> Tensor:
    """Noise-contrastive estimation, equations 5 to 7 of NPID; arguments as in `bank_scores`.

    With P_i = exp(s_i / temperature) / Z, K negatives and n bank rows:
    -log(P_0 / (P_0 + K/n)) - sum_k log((K/n) / (P_k + K/n)).

    Args:
        embedding, bank, index, negatives: as in `bank_scores`.
        temperature: divides the cosines.
        partition: scalar Z, estimated once by `partition_estimate` and frozen.

    Returns:
        Scalar, mean over B.
    """
    scores = bank_scores(embedding, bank, index, negatives)
    return scores_nce(scores, len(bank), temperature=temperature, partition=partition)


def partition_estimate(scores: Tensor, bank_rows: int, *, temperature: float) -> Tensor:
    """Z = n * mean(exp(s / temperature)) over the scores (B, 1 + K) of the first batch, a scalar."""
    return (scores.detach() / temperature).exp().mean() * bank_rows

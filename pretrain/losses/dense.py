"""DenseCL's dense loss (arXiv 2011.09157): InfoNCE of every cell against its match and a queue of images."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import CHUNK_LOGITS, l2_normalize, negatives_log_sum_exp, to_float32


def match_cells(query_map: Tensor, key_map: Tensor, allowed: Tensor | None = None) -> Tensor:
    """For each query cell the key cell of the same image with the largest cosine.

    No gradient; several query cells may share a key cell.

    Args:
        query_map: (B, C, P) features.
        key_map: (B, C, P2) features.
        allowed: (B, P, P2) bool, pairs that may match; a row without any is free.

    Returns:
        (B, P) int64, indices into P2; the lowest index wins a tie.
    """
    with torch.no_grad(), torch.autocast(query_map.device.type, enabled=False):
        cosine = torch.einsum("bci,bcj->bij", l2_normalize(query_map, dim=1), l2_normalize(key_map, dim=1))
        if allowed is not None:
            free = allowed | ~allowed.any(dim=2, keepdim=True)
            cosine = cosine.masked_fill(~free, -torch.inf)
        return cosine.argmax(dim=2)


def dense_info_nce(
    query_dense: Tensor,
    key_dense: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    queue: Tensor,
    *,
    temperature: float,
    match: Tensor | None = None,
    chunk_logits: int = CHUNK_LOGITS,
) -> Tensor:
    """Equation 2 of DenseCL: each cell of the query against its match and the dense queue.

    Args:
        query_dense, key_dense: (B, D, P) dense head outputs, normalised over D here; only the query's takes a
            gradient.
        query_map, key_map: (B, C, P) backbone maps, which decide the matches.
        queue: (K, D) unit rows, one pooled vector per past image.
        temperature: divides the cosines.
        match: (B, P) indices of the matched key cells, in place of those by backbone features.
        chunk_logits: most logits alive at once.

    Returns:
        Scalar, mean over B * P cells; log(K + 1) when all similarities are equal.
    """
    if match is None:
        match = match_cells(query_map, key_map)
    query, key = l2_normalize(query_dense, dim=1), l2_normalize(key_dense.detach(), dim=1)
    matched = key.gather(2, match[:, None, :].expand(-1, key.shape[1], -1))
    rows = query.transpose(1, 2).reshape(-1, query.shape[1])
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * matched).sum(dim=1).flatten() / temperature
        negative = negatives_log_sum_exp(
            rows, to_float32(queue.detach()), temperature=temperature, chunk_logits=chunk_logits
        )
    return (torch.logaddexp(positive, negative) - positive).mean()

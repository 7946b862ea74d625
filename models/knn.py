"""k nearest neighbours on frozen features: the trainer's online check and evaluation's kNN row.

Protocol of InstDisc (Wu et al., CVPR 2018) as DINO uses it: cosine similarity, votes weighted by
exp(similarity / 0.07).
Shape legend: N training rows, Q queries, D feature dimensions, K classes, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def knn_scores(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 4096,
) -> Tensor:
    """Score classes by the weighted vote of the k most similar training rows.

    Args:
        features: (N, D) of the training images; normalised here.
        labels: (N,) int64 in 0 .. classes - 1.
        queries: (Q, D).
        classes: K.
        k: neighbours, cut to N.
        temperature: of the votes' weights.
        chunk: queries compared at once, which bounds memory.

    Returns:
        (Q, K) float32 votes, those of the nearest row weighing 1; argmax is the prediction.

    Raises:
        ValueError: if rows and labels differ in number or there is no training row.
    """
    if len(features) != len(labels) or len(features) == 0:
        raise ValueError(
            f"{len(features)} training rows with {len(labels)} labels: give one each, at least one"
        )
    features = functional.normalize(features.float(), dim=1)
    labels = labels.to(features.device)
    votes = []
    for part in torch.split(queries, chunk):
        similarity = functional.normalize(part.float().to(features.device), dim=1) @ features.T
        nearest, rows = similarity.topk(min(k, len(features)), dim=1)
        empty = torch.zeros(len(part), classes, device=features.device)
        # relative to the nearest, which changes no ranking: exp(similarity / temperature) may be infinite
        votes.append(empty.scatter_add_(1, labels[rows], ((nearest - nearest[:, :1]) / temperature).exp()))
    return torch.cat(votes)


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Fraction of queries whose class the vote finds, in [0, 1]; arguments as for `knn_scores`."""
    classes = int(torch.cat([labels.cpu(), query_labels.cpu()]).max()) + 1
    scores = knn_scores(features, labels, queries, classes=classes, k=k, temperature=temperature)
    return float((scores.argmax(1).cpu() == query_labels.cpu()).float().mean())

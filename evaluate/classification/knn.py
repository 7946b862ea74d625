"""`evaluate knn`: nearest neighbours on frozen features, a health check that trains nothing.

`knn-dino` (Caron et al., ICCV 2021, arXiv 2104.14294): cosine, k = 20, T = .07.
`knn-instdisc` (Wu et al., CVPR 2018, arXiv 1805.01978): cosine, k = 200, T = .1.
In both the k nearest training features vote with exp(cosine / T). Images are resized to 256 and cropped to
224 (or in that ratio), the backbone is in eval mode. Dense methods lose here and win on dense tasks; do not
rank them by this number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.config import Count, Positive
from ...common.errors import UserError
from ...common.terminal.progress import Advance
from ...models.features import Features
from ...models.knn import knn_scores
from ..result import Outcome
from .vectors import FeatureProtocol


class KnnProtocol(FeatureProtocol):
    """Neighbours and temperature of the vote."""

    k: Count
    temperature: Positive


CHUNK = 4096  # test images compared at once

PROTOCOLS = {
    "knn-dino": KnnProtocol(k=20, temperature=0.07),
    "knn-instdisc": KnnProtocol(k=200, temperature=0.1),
}


def evaluate_knn(
    train: Features,
    test: Features,
    classes: tuple[str, ...],
    protocol: KnnProtocol,
    *,
    advance: Advance | None = None,
) -> Outcome:
    """Classify the test features by their neighbours among the training features.

    Args:
        train, test: of the images.
        classes: their names.
        protocol: one of `PROTOCOLS`, perhaps changed.
        advance: called with the number of test images that are done.

    Returns:
        `top1` and `top5` (with more than five classes) in [0, 1], accuracy per class, confusion.

    Raises:
        UserError: if there are fewer training images than neighbours.
    """
    if protocol.k > len(train.labels):
        raise UserError(
            f"k = {protocol.k} neighbours, but there are {len(train.labels)} training images; "
            "use the other protocol or --set k=N"
        )
    scores = []
    for queries in torch.split(test.values, CHUNK):
        scores.append(
            knn_scores(
                train.values,
                train.labels,
                queries,
                classes=len(classes),
                k=protocol.k,
                temperature=protocol.temperature,
            )
        )
        if advance is not None:
            advance(len(queries))
    return classification_outcome(torch.cat(scores), test.labels, classes)


def classification_outcome(scores: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Outcome:
    """Accuracy of scores (N, K) against class numbers (N,): top 1, top 5, per class, confusion."""
    count = len(classes)
    predicted = scores.argmax(1)
    metrics = {"top1": float((predicted == labels).float().mean())}
    if count > 5:
        best = scores.topk(5, dim=1).indices
        metrics["top5"] = float((best == labels[:, None]).any(1).float().mean())
    confusion = torch.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)
    totals = confusion.sum(1)
    per_class = {
        name: float(confusion[index, index] / totals[index]) if totals[index] else None
        for index, name in enumerate(classes)
    }
    return Outcome(metrics=metrics, per_class=per_class, confusion=confusion.tolist())

"""Mean intersection over union from a confusion matrix; void pixels do not count.

Shape legend: K classes, H and W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .data import IGNORE


def confusion_matrix(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Count pixels by (truth, prediction), (K, K) int64; pixels whose truth is void (255) are left out.

    Args:
        truth, predicted: class numbers of any one shape.
        classes: K.
    """
    counted = truth != IGNORE
    pairs = truth[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_iou(confusion: Tensor) -> list[float | None]:
    """Intersection over union of each class, None for a class that is neither there nor predicted."""
    hits = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return [float(hit / total) if total else None for hit, total in zip(hits, union, strict=True)]


def segmentation_metrics(confusion: Tensor) -> dict[str, float]:
    """`miou` and `pixel_accuracy`, both in [0, 1].

    The mean is over the classes that occur in the truth or the prediction, as mmsegmentation takes it: a
    class that is predicted but not there counts with 0.
    """
    ious = [iou for iou in class_iou(confusion) if iou is not None]
    if not ious:
        raise ValueError("no pixel counts: every true label is void")
    return {
        "miou": sum(ious) / len(ious),
        "pixel_accuracy": float(confusion.diagonal().sum() / confusion.sum()),
    }


def class_counts(confusion: Tensor) -> Tensor:
    """Pixels of each class that are hit, true, and predicted: (K, 3) int64. They add up over images."""
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)], dim=1)


def miou_of_counts(counts: np.ndarray) -> np.ndarray:
    """Mean IoU of summed `class_counts`, (..., K, 3) to (...), over the classes of `segmentation_metrics`."""
    hits, true, predicted = np.moveaxis(counts, -1, 0)
    union = true + predicted - hits
    ious = hits / np.maximum(union, 1)
    return np.asarray(ious.sum(-1) / np.maximum((union > 0).sum(-1), 1))

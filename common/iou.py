"""Intersection over union of masks: one function for threshold, scores, demo and benchmarks."""

from __future__ import annotations

import numpy as np

from .types import Mask


def iou(first: Mask, second: Mask) -> float:
    """Intersection over union (Jaccard index) of two masks of one shape; 1 where both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0

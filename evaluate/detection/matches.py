"""COCO's average precision from what each test image adds to it, so that test images can be drawn again.

Detections are matched inside their image, so a resampled test set needs no second matching: the matches of an
image count as often as it was drawn. faster-coco-eval gives the numbers of results; this gives their spread
over the test images, and equals it where every image counts once (tested).
Shape legend: N test images, K classes, D detections, T true boxes, I IoU thresholds, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .data import LabelledObjects
from .voc_metric import IOU_THRESHOLDS

RECALLS = np.linspace(0, 1, 101)  # COCO's points of interpolation
# headline metric -> the IoU thresholds it is the mean over, by position
THRESHOLDS_OF = {
    "ap": tuple(range(len(IOU_THRESHOLDS))),
    "ap50": (IOU_THRESHOLDS.index(0.5),),
    "ap75": (IOU_THRESHOLDS.index(0.75),),
}


def match_detections(rows: Sequence[dict[str, Any]], data: LabelledObjects) -> dict[str, np.ndarray]:
    """Match detections to true boxes by COCO's rule: by falling score, each to the best box still free.

    Args:
        rows: COCO's result rows (`image_id` from 1, `category_id`, `bbox` as x, y, width, height, `score`).
        data: the test images. Difficult objects and crowds are neither hits nor misses.

    Returns:
        `image` (D,) from 0, `label` (D,) from 1, `score` (D,), `hit` and `ignored` (D, I) bool, and `wanted`
        (N, K), the true boxes that count.
    """
    grouped: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["image_id"] - 1, row["category_id"]), []).append(row)
    found: dict[str, list[np.ndarray]] = {
        "image": [np.zeros(0, np.int64)],
        "label": [np.zeros(0, np.int64)],
        "score": [np.zeros(0)],
        "hit": [np.zeros((0, len(IOU_THRESHOLDS)), bool)],
        "ignored": [np.zeros((0, len(IOU_THRESHOLDS)), bool)],
    }
    for (image, label), here in sorted(grouped.items()):
        ranked = sorted(here, key=lambda row: -float(row["score"]))
        boxes = np.asarray([row["bbox"] for row in ranked], float)
        boxes[:, 2:] += boxes[:, :2]
        objects = data.images[image]
        same = objects.labels == label
        hit, ignored = _match(boxes, objects.boxes[same].astype(float), objects.difficult[same])
        found["image"].append(np.full(len(ranked), image))
        found["label"].append(np.full(len(ranked), label))
        found["score"].append(np.asarray([row["score"] for row in ranked], float))
        found["hit"].append(hit)
        found["ignored"].append(ignored)
    counted = [objects.labels[~objects.difficult] for objects in data.images]
    wanted = np.stack([np.bincount(labels, minlength=len(data.classes) + 1)[1:] for labels in counted])
    return {name: np.concatenate(parts) for name, parts in found.items()} | {"wanted": wanted}


def _match(boxes: np.ndarray, truth: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hits and ignored ones among the ranked detections (D, 4) of one class in one image, (D, I) each."""
    hit = np.zeros((len(boxes), len(IOU_THRESHOLDS)), bool)
    ignored = hit.copy()
    overlaps = _overlaps(boxes, truth, difficult)
    for at, threshold in enumerate(IOU_THRESHOLDS):
        free = ~difficult
        for number, row in enumerate(overlaps):
            candidates = np.flatnonzero(free & (row >= threshold))
            if len(candidates):
                hit[number, at] = True
                free[candidates[row[candidates].argmax()]] = False
            else:
                ignored[number, at] = bool((row[difficult] >= threshold).any())
    return hit, ignored


def _overlaps(boxes: np.ndarray, truth: np.ndarray, difficult: np.ndarray) -> np.ndarray:
    """(D, T) intersection over union; of a crowd, over the detection's own area, as COCO counts it."""
    corners = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], truth[None, :, 2:]) - corners, 0, None)
    common = sides.prod(-1)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None]
    union = own + (truth[:, 2:] - truth[:, :2]).prod(-1)[None] - common
    return np.asarray(common / np.maximum(np.where(difficult[None], own, union), 1e-12))


def average_precision(matches: dict[str, np.ndarray], headline: str, weights: np.ndarray) -> np.ndarray:
    """COCO's `ap`, `ap50` or `ap75` of each resample, (R,), in [0, 1].

    Args:
        matches: of `match_detections`.
        headline: a name in `THRESHOLDS_OF`.
        weights: (R, N) how often each test image was drawn.

    Returns:
        The mean over the classes that have a true box in the resample; 0 where none has.
    """
    classes = matches["wanted"].shape[1]
    values = np.zeros((classes, len(weights)))
    wanted = weights @ matches["wanted"]  # (R, K)
    for label in range(1, classes + 1):
        own = np.flatnonzero(matches["label"] == label)
        own = own[np.argsort(-matches["score"][own], kind="stable")]
        hits, ignored = matches["hit"][own], matches["ignored"][own]
        for resample, drawn in enumerate(weights):
            counts = drawn[matches["image"][own]]
            total = wanted[resample, label - 1]
            if total and len(own):
                each = [
                    _interpolated(counts * hits[:, at], counts * ~(hits[:, at] | ignored[:, at]), total)
                    for at in THRESHOLDS_OF[headline]
                ]
                values[label - 1, resample] = np.mean(each)
    present = wanted.T > 0
    return np.asarray((values * present).sum(0) / np.maximum(present.sum(0), 1))


def _interpolated(hits: np.ndarray, alarms: np.ndarray, wanted: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or above; counts (D,) by falling score."""
    found, wrong = np.cumsum(hits), np.cumsum(alarms)
    precision = found / np.maximum(found + wrong, np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(found / wanted, RECALLS)
    return float(np.append(best, 0.0)[places].mean())

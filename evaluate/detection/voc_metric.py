"""Pascal VOC average precision, the 11-point form of 2007, also averaged over IoU .50 to .95.

Written after Everingham et al., IJCV 2010, section 4.2 (the measure) and 4.3 (the assignment). This is
neither COCO's AP (101 points, at most 100 detections an image) nor scikit-learn's (not interpolated). VOC
counts pixels: a box from pixel xmin to pixel xmax is xmax - xmin + 1 wide. Boxes here are intervals (x1, y1,
x2, y2) with x1 = xmin - 1, x2 = xmax, in pixels, so that plain interval overlap is VOC's.
Shape legend: D detections, T true boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchvision

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@dataclass(frozen=True)
class Truth:
    """True boxes of one class in one image; difficult ones are neither hits nor misses."""

    boxes: np.ndarray  # (T, 4)
    difficult: np.ndarray  # (T,) bool


@dataclass(frozen=True)
class Detections:
    """Detections of one class over all images, in any order."""

    images: Sequence[str]  # D
    scores: np.ndarray  # (D,)
    boxes: np.ndarray  # (D, 4)


def eleven_point(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over recall 0, .1, ..., 1 of the best precision at that recall or above.

    Args:
        recall, precision: (D,) after each detection, by falling score.
    """
    points = np.arange(11) / 10
    # a recall of 3/10 must count as reaching .3 whatever its last bit
    best = [precision[recall >= point - 1e-9].max(initial=0.0) for point in points]
    return float(np.mean(best))


def voc_classification_ap(scores: np.ndarray, positive: np.ndarray) -> float:
    """11-point AP of a ranking: scores (N,), positive (N,) bool. Ties keep their order in the list."""
    hits = positive[np.argsort(-scores, kind="stable")]
    found = np.cumsum(hits)
    return eleven_point(found / max(1, int(positive.sum())), found / np.arange(1, len(hits) + 1))


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (4,) with T boxes (T, 4): (T,)."""
    overlaps = torchvision.ops.box_iou(torch.from_numpy(box[None]).double(), torch.from_numpy(boxes).double())
    return np.asarray(overlaps[0].numpy())


def voc_ap(truths: Mapping[str, Truth], detections: Detections, *, iou: float = 0.5) -> float | None:
    """11-point average precision of one class at one IoU threshold.

    By falling score, a detection is compared with the true box of the image it overlaps most: a hit if the
    overlap reaches `iou` and no earlier detection took that box, passed over if that box is difficult, a
    false alarm otherwise (so a second detection of one object is a false alarm).

    Args:
        truths: by image; images without the class may be left out.
        detections: of the class, over all images.
        iou: least overlap of a hit.

    Returns:
        The AP in [0, 1], or None if the class has no true box that is not difficult.
    """
    wanted = sum(int((~truth.difficult).sum()) for truth in truths.values())
    if wanted == 0:
        return None
    taken: set[tuple[str, int]] = set()
    hits, alarms = [], []
    for position in np.argsort(-detections.scores, kind="stable"):
        image = detections.images[position]
        truth = truths.get(image)
        hit = alarm = False
        if truth is None or not len(truth.boxes):
            alarm = True
        else:
            overlaps = box_iou(detections.boxes[position], truth.boxes)
            nearest = int(overlaps.argmax())
            if overlaps[nearest] < iou or (not truth.difficult[nearest] and (image, nearest) in taken):
                alarm = True
            elif not truth.difficult[nearest]:
                hit = True
                taken.add((image, nearest))
        hits.append(hit)
        alarms.append(alarm)
    found, wrong = np.cumsum(hits), np.cumsum(alarms)
    counted = np.maximum(found + wrong, 1)
    return eleven_point(found / wanted, found / counted) if len(found) else 0.0


def voc_mean_ap(
    truths: Mapping[str, Mapping[str, Truth]], detections: Mapping[str, Detections]
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Mean over classes, and over IoU .50 to .95 in steps of .05.

    Args:
        truths: class name -> image -> true boxes.
        detections: class name -> detections; a class without any may be left out.

    Returns:
        `ap` (mean over thresholds), `ap50`, `ap75`; and per class its mean over thresholds, None for a class
        without true boxes, which the means leave out.
    """
    none = Detections((), np.zeros(0), np.zeros((0, 4)))
    table: dict[str, list[float]] = {}
    per_class: dict[str, float | None] = {}
    for name, images in truths.items():
        found = detections.get(name, none)
        values = [voc_ap(images, found, iou=iou) for iou in IOU_THRESHOLDS]
        row = [value for value in values if value is not None]
        per_class[name] = float(np.mean(row)) if row else None
        if row:
            table[name] = row
    if not table:
        raise ValueError("no class has a true box that is not difficult")
    means = np.mean(list(table.values()), axis=0)
    summary = {
        "ap": float(means.mean()),
        "ap50": float(means[IOU_THRESHOLDS.index(0.5)]),
        "ap75": float(means[IOU_THRESHOLDS.index(0.75)]),
    }
    return summary, per_class

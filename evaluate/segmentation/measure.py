"""Tests of a segmentation network: every test image at the size of its labels, void pixels left out.

Shape legend: N test images, K classes, H and W pixels, S map cells per side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..batches import ordered_batches
from ..finetune import Curve
from ..pictures import segmentation_picture
from ..processes import gather_to_all, share, together
from ..result import Outcome
from ..settings import Runtime
from .data import LabelledPixels
from .miou import class_counts, class_iou, confusion_matrix, segmentation_metrics

PICTURES = 6  # test images shown in the report


class _TestImages:
    """Images with labels, each of its own size."""

    def __init__(self, data: LabelledPixels) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        return self.data.read(index)


def _only(samples: list[Any]) -> Any:
    """A batch of one as it is."""
    return samples[0]


def measure_segmentation(
    logits_of: Callable[[Tensor], Tensor], data: LabelledPixels, runtime: Runtime, curve: Curve
) -> Outcome:
    """Count the IoU of all test images, which the processes share.

    Args:
        logits_of: (1, 3, H, W) uint8 image on the device to logits (1, K, S, S).
        data: N test images.
        runtime: device, workers, progress.
        curve: of the training's loss, for the outcome.

    Returns:
        `miou`, `pixel_accuracy`, IoU per class, confusion, the loss curve, a few pictures, counts per image.
    """
    parts = gather_to_all(_predict(logits_of, data, runtime))
    confusion = torch.stack([part.confusion for part in parts]).sum(0)
    counts = torch.stack([part.counts for part in parts]).sum(0)
    ious = class_iou(confusion)
    return Outcome(
        metrics=segmentation_metrics(confusion),
        per_class=dict(zip(data.names, ious, strict=True)),
        confusion=confusion.tolist(),
        curves={"loss": curve},
        pictures=[picture for part in parts for picture in part.pictures],
        per_image={"counts": counts.numpy()},
    )


@dataclass(frozen=True)
class _Predicted:
    """What a process found on its test images."""

    confusion: Tensor  # (K, K)
    counts: Tensor  # (N, K, 3) of every image; 0 for those of other processes
    pictures: list[tuple[str, np.ndarray]]


@torch.no_grad()
def _predict(logits_of: Callable[[Tensor], Tensor], data: LabelledPixels, runtime: Runtime) -> _Predicted:
    """Predict this process's test images at the size of their labels."""
    confusion = torch.zeros(data.classes, data.classes, dtype=torch.int64)
    counts = torch.zeros(len(data), data.classes, 3, dtype=torch.int64)
    shown = {round(position) for position in np.linspace(0, len(data) - 1, min(PICTURES, len(data)))}
    pictures = []
    mine = share(len(data), 1)
    with together(), runtime.progress("test images", len(mine)) as advance:
        images = ordered_batches(
            _TestImages(data), batch_size=1, indices=mine, workers=runtime.workers, collate=_only
        )
        for index, (image, labels) in zip(mine, images, strict=True):
            logits = logits_of(image[None].to(runtime.device))
            enlarged = functional.interpolate(
                logits.float(), size=labels.shape, mode="bilinear", align_corners=False
            )
            predicted = enlarged[0].argmax(0).cpu()
            found = confusion_matrix(labels, predicted, data.classes)
            confusion += found
            counts[index] = class_counts(found)
            if index in shown:
                name = data.images[index].name
                pictures.append((name, segmentation_picture(image, labels, predicted, data.classes)))
            advance(1)
    return _Predicted(confusion, counts, pictures)

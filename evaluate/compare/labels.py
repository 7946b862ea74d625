"""A user's labelled set as a comparison needs it: images that train, their classes, and parts of them.

Shape legend: N labelled training images, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from ...common.errors import UserError
from ...common.terminal.progress import show_progress
from ..detection.run import DetectionData, detect_task_on, detection_sets
from ..measure import Task
from ..segmentation.data import IGNORE
from ..segmentation.run import SegmentationData, segment_task_on, segmentation_sets
from ..settings import Request
from .design import classes_absent, images_of, label_subset


class LabelledData(Protocol):
    """Labelled images, of which some can be taken."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def take(self, indices: Sequence[int]) -> Self:
        """The images at `indices`, which may name one more than once."""
        ...

    def record(self) -> dict[str, object]:
        """JSON-able description."""
        ...


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Training and test images; `presence` (N, K) bool says which class is in which training image."""

    train: Any  # LabelledData; so is `test`
    test: Any
    classes: tuple[str, ...]
    presence: np.ndarray
    task_on: Callable[[Request, Any, Any], Task]

    def part(self, request: Request, fraction: float) -> Task:
        """The task of learning from a fraction of the labels, drawn by the request's seed.

        Every run has the same steps of the same batch: where the fraction has fewer images than a batch,
        they are repeated (each copy augmented for itself). Random weights take their BatchNorm statistics
        from all training images, for that needs no labels.
        """
        whole = self.task_on(request, self.train, self.test)
        subset = label_subset(self.presence, fraction, request.seed)
        repeated = -(-int(whole.parameters["batch_size"]) // len(subset))
        part = self.train.take(subset)
        record = {**part.record(), "fraction": fraction, "of": len(self.train), "repeated": repeated}
        task = self.task_on(request, self.train.take(subset * repeated), self.test)
        return dataclasses.replace(
            task,
            data={"train": record, "test": whole.data["test"], "unlabelled": whole.data["train"]},
            train_images=whole.train_images,
        )

    def images(self, fraction: float) -> int:
        """How many labelled images a fraction is."""
        return images_of(fraction, len(self.train))

    def absent(self, fraction: float, seed: int) -> list[str]:
        """Classes that no image of a fraction has, though others have them."""
        found = classes_absent(self.presence, label_subset(self.presence, fraction, seed))
        return [self.classes[label] for label in found]


def segmentation_labels(where: SegmentationData) -> LabelledSet:
    """A labelled set for segmentation; every label file is read."""
    train, test = segmentation_sets(where)
    presence = np.zeros((len(train), train.classes), bool)
    with show_progress("classes of the training images", len(train)) as advance:
        for index in range(len(train)):
            found = np.unique(train.read_labels(index).numpy())
            presence[index, found[found != IGNORE]] = True
            advance(1)
    return LabelledSet(
        train=train, test=test, classes=train.names, presence=presence, task_on=segment_task_on
    )


def detection_labels(where: DetectionData) -> LabelledSet:
    """A labelled set for detection, of the training images that have an object to learn from.

    Raises:
        UserError: if no training image has an object that counts.
    """
    train, test = detection_sets(where)
    counted = [objects.labels[~objects.difficult] for objects in train.images]
    useful = [index for index, labels in enumerate(counted) if len(labels)]
    if not useful:
        raise UserError(f"{train.name}: no training image has an object that counts; name another split")
    presence = np.zeros((len(useful), len(train.classes)), bool)
    for row, index in enumerate(useful):
        presence[row, counted[index] - 1] = True
    return LabelledSet(
        train=train.take(useful),
        test=test,
        classes=train.classes,
        presence=presence,
        task_on=detect_task_on,
    )

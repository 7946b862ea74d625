"""`evaluate segment`, from paths to a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from ...common.config import Settings
from ...common.errors import UserError
from ...common.terminal.progress import Progress, no_progress
from ...data.images.class_folders import read_lines
from ...models.preprocess import normalize
from ..batches import shuffled_images
from ..measure import Task
from ..settings import Request, choose, parameters
from .data import IGNORE, LabelledPixels, hold_out, paired_folders, voc_list, voc_split, with_classes
from .protocols import PROTOCOLS, ProbeProtocol
from .samples import ResizedSamples, SegmentationCrops
from .segment import evaluate_segmentation


class SegmentationData(Settings):
    """Where images and label PNGs are."""

    images: Path | None = None
    labels: Path | None = None
    test_images: Path | None = None
    test_labels: Path | None = None
    voc: Path | None = None
    splits: tuple[str, str] = ("train", "val")
    holdout: float = Field(default=0.25, gt=0, lt=1)  # where no test set is named
    void: int = Field(default=255, ge=0, le=65_535)
    binary: bool = False
    classes: int | None = Field(default=None, ge=2, le=255)
    class_names: Path | None = None  # a text file, a name a line


def segment_task(request: Request, where: SegmentationData) -> Task:
    """`evaluate segment`."""
    choose(PROTOCOLS, request)  # a mistake in it shows before the labels are read
    return segment_task_on(request, *segmentation_sets(where, progress=request.runtime.progress))


def segmentation_sets(
    where: SegmentationData, *, progress: Progress = no_progress
) -> tuple[LabelledPixels, LabelledPixels]:
    """Training and test images with their classes; every label file is read."""
    names = _class_names(where)
    classes = len(names) if names else where.classes
    train, test = with_classes(*_sets(where), classes, progress=progress)
    return replace(train, class_names=names), replace(test, class_names=names)


def segment_task_on(request: Request, train: LabelledPixels, test: LabelledPixels) -> Task:
    """`evaluate segment` on images that were read before."""
    protocol = choose(PROTOCOLS, request)
    samples: ResizedSamples | SegmentationCrops
    if isinstance(protocol, ProbeProtocol):
        samples, size, batch_size = ResizedSamples(train, protocol), protocol.width, 32
    else:
        samples, size, batch_size = SegmentationCrops(train, protocol), protocol.crop, protocol.batch_size
    return Task(
        name="segment",
        headline="miou",
        parameters=parameters(protocol),
        data={"train": train.record(), "test": test.record()},
        image_size=size,
        evaluate=lambda subject: evaluate_segmentation(
            subject.backbone,
            train,
            test,
            protocol,
            seed=subject.seed,
            runtime=subject.runtime,
            identity=subject.identity,
        ),
        train_images=lambda subject: (
            normalize(images)
            for images, _ in shuffled_images(
                samples, batch_size=batch_size, seed=subject.seed, runtime=subject.runtime
            )
        ),
    )


def _class_names(where: SegmentationData) -> tuple[str, ...]:
    """Names of the classes, from the file that was given."""
    if where.class_names is None:
        return ("background", "foreground") if where.binary else ()
    names = tuple(read_lines(where.class_names, "a text file with the name of one class per line"))
    if where.classes is not None and where.classes != len(names):
        raise UserError(f"{where.class_names} names {len(names)} classes, but --classes is {where.classes}")
    if not 2 <= len(set(names)) == len(names) <= IGNORE:
        raise UserError(f"{where.class_names}: give 2 to {IGNORE} names, each of them once")
    return names


def _sets(where: SegmentationData) -> tuple[LabelledPixels, LabelledPixels]:
    """Training and test images, from VOC's layout or from pairs of folders."""
    options: dict[str, Any] = {"void": where.void}
    if where.voc is not None:
        for split in where.splits:  # both before the images of one, perhaps many, are looked for
            voc_list(where.voc, split)
        train, test = (voc_split(where.voc, split, **options) for split in where.splits)
        return train, test
    if where.images is None or where.labels is None:
        raise UserError("give --images and --labels, or --voc (the VOC layout)")
    options["binary"] = where.binary
    train = paired_folders(where.images, where.labels, **options)
    if (where.test_images is None) != (where.test_labels is None):
        raise UserError("give --test-images and --test-labels together, or neither (then --holdout)")
    if where.test_images is not None and where.test_labels is not None:
        return train, paired_folders(where.test_images, where.test_labels, **options)
    return hold_out(train, where.holdout)

"""`evaluate segment`, from paths to a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from ...common.config import Settings
from ...common.errors import UserError
from ...models.preprocess import normalize
from ..batches import shuffled_images
from ..measure import Evaluated, Task, measure
from ..settings import Request, choose, parameters
from .data import LabelledPixels, hold_out, paired_folders, voc_split, with_classes
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


def run_segment(request: Request, where: SegmentationData) -> Evaluated:
    """`evaluate segment`."""
    protocol = choose(PROTOCOLS, request)
    train, test = with_classes(*_sets(where), where.classes)
    samples: ResizedSamples | SegmentationCrops
    if isinstance(protocol, ProbeProtocol):
        samples, size, batch_size = ResizedSamples(train, protocol), protocol.width, 32
    else:
        samples, size, batch_size = SegmentationCrops(train, protocol), protocol.crop, protocol.batch_size
    runtime = request.runtime
    task = Task(
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
            runtime=runtime,
            identity=subject.identity,
        ),
        train_images=lambda seed: (
            normalize(images)
            for images, _ in shuffled_images(samples, batch_size=batch_size, seed=seed, runtime=runtime)
        ),
    )
    return measure(request, task)


def _sets(where: SegmentationData) -> tuple[LabelledPixels, LabelledPixels]:
    """Training and test images, from VOC's layout or from pairs of folders."""
    options: dict[str, Any] = {"void": where.void}
    if where.voc is not None:
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

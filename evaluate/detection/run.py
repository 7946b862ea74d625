"""`evaluate detect`, from paths to a task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ...common.coco import read_coco
from ...common.config import Settings
from ...common.errors import UserError
from ...common.imagenet import MEAN, STD
from ..batches import shuffled_images
from ..measure import Subject, Task
from ..settings import Request, choose, parameters
from .data import (
    DetectionSamples,
    LabelledObjects,
    coco_objects,
    collate_lists,
    hold_out_objects,
    voc_list,
    voc_objects,
)
from .detect import evaluate_detection
from .protocols import PROTOCOLS, DetectionProtocol, ViTDetProtocol


class DetectionData(Settings):
    """Where images and boxes are."""

    voc: Path | None = None
    splits: tuple[str, str] = ("trainval", "test")
    images: Path | None = None
    annotations: Path | None = None
    test_images: Path | None = None
    test_annotations: Path | None = None
    holdout: float = Field(default=0.25, gt=0, lt=1)


def detect_task(request: Request, where: DetectionData) -> Task:
    """`evaluate detect`."""
    choose(PROTOCOLS, request)  # a mistake in it shows before the annotations are read
    return detect_task_on(request, *detection_sets(where))


def detect_task_on(request: Request, train: LabelledObjects, test: LabelledObjects) -> Task:
    """`evaluate detect` on images whose annotations were read before."""
    protocol = choose(PROTOCOLS, request)
    return Task(
        name="detect",
        headline=protocol.headline,
        parameters=parameters(protocol),
        data={"train": train.record(), "test": test.record()},
        image_size=protocol.shape.short_sides[-1],
        evaluate=lambda subject: evaluate_detection(
            subject.backbone,
            train,
            test,
            protocol,
            seed=subject.seed,
            runtime=subject.runtime,
            identity=subject.identity,
        ),
        train_images=lambda subject: _train_images(train, protocol, subject),
    )


def detection_sets(where: DetectionData) -> tuple[LabelledObjects, LabelledObjects]:
    """Training and test images, from VOC's layout or COCO's JSON."""
    if where.voc is not None:
        for split in where.splits:  # both before the annotations of one, perhaps many, are read
            voc_list(where.voc, split)
        train = voc_objects(where.voc, where.splits[0])
        return train, voc_objects(where.voc, where.splits[1], train.classes)
    if where.images is None or where.annotations is None:
        raise UserError("give --voc (the VOC layout), or --images and --annotations (COCO JSON)")
    if where.test_images is not None and where.test_annotations is None:
        raise UserError("--test-images needs --test-annotations: the COCO JSON of the test set")
    if where.test_annotations is not None and not where.test_annotations.is_file():
        read_coco(where.test_annotations)  # says what is wrong with it, before the training images are read
    train = coco_objects(where.images, where.annotations)
    if where.test_annotations is None:
        return hold_out_objects(train, where.holdout)
    return train, coco_objects(where.test_images or where.images, where.test_annotations, train.classes)


def _train_images(
    data: LabelledObjects, protocol: DetectionProtocol | ViTDetProtocol, subject: Subject
) -> Iterator[Tensor]:
    """Training images as the detector resizes, normalises and pads them in tests."""
    side, longest = protocol.shape.short_sides[-1], protocol.shape.long_side
    transform = GeneralizedRCNNTransform(side, longest, list(MEAN), list(STD)).eval()
    samples = DetectionSamples(data, train=True)
    batches = shuffled_images(
        samples,
        batch_size=protocol.batch_size,
        seed=subject.seed,
        runtime=subject.runtime,
        collate=collate_lists,
    )
    for images, _ in batches:
        yield transform([image.float() / 255 for image in images])[0].tensors

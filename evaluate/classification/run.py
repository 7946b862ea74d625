"""The commands on labelled images, from paths to results: kNN, linear, few labels, SVM."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.errors import UserError
from ...data.images.class_folders import LabelledImages, class_folders, fraction_per_class, listed
from ...models.backbones.base import Vector
from ...models.batch_statistics import ENOUGH_IMAGES
from ...models.features import Features, extract_features, spread_crops
from ...models.preprocess import default_resize
from ..measure import Evaluated, Subject, Task, measure
from ..result import Outcome
from ..settings import Request, Runtime, choose, parameters
from .vectors import FeatureProtocol, evaluation_vectors, measure_vectors


def run_knn(request: Request, *, train: Path, test: Path) -> Evaluated:
    """`evaluate knn`."""
    from .knn import PROTOCOLS, evaluate_knn

    protocol = choose(PROTOCOLS, request)
    train_images, test_images, data = _folders(train, test)

    def evaluate(subject: Subject) -> Outcome:
        def one(vector: Vector) -> Outcome:
            found = [
                _features(subject, images, protocol, vector, request)
                for images in (train_images, test_images)
            ]
            return evaluate_knn(found[0], found[1], train_images.classes, protocol)

        return measure_vectors(evaluation_vectors(protocol, subject.info, subject.backbone), one)

    task = Task(
        name="knn",
        headline="top1",
        parameters={**parameters(protocol), "resize": default_resize(protocol.image_size)},
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
        train_images=lambda seed: _centre_crops(train_images, protocol, request.runtime, seed),
        draws=False,
    )
    return measure(request, task)


def run_linear(request: Request, *, train: Path, test: Path) -> Evaluated:
    """`evaluate linear`."""
    from .linear import PROTOCOLS, evaluate_linear

    protocol = choose(PROTOCOLS, request)
    train_images, test_images, data = _folders(train, test)

    def evaluate(subject: Subject) -> Outcome:
        vectors = evaluation_vectors(protocol, subject.info, subject.backbone)

        def one(vector: Vector) -> Outcome:
            folder = request.runtime.folder
            if folder is not None and vector != vectors[0]:
                folder = folder / vector  # a training of its own
            return evaluate_linear(
                subject.backbone,
                train_images,
                test_images,
                protocol,
                seed=subject.seed,
                runtime=request.runtime.replace(folder=folder),
                vector=vector,
                identity=subject.identity,
            )

        return measure_vectors(vectors, one)

    task = Task(
        name="linear",
        headline="top1",
        parameters=parameters(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
        train_images=lambda seed: _centre_crops(train_images, protocol, request.runtime, seed),
    )
    return measure(request, task)


def run_semi(
    request: Request, *, train: Path, test: Path, list_file: Path | None, fraction: float | None
) -> Evaluated:
    """`evaluate semi`; the few images come from a list file, or are a fraction of each class."""
    from .semi import PROTOCOLS, evaluate_semi

    protocol = choose(PROTOCOLS, request)
    train_images, test_images, data = _folders(train, test)
    if (list_file is None) == (fraction is None):
        raise UserError("give either --list FILE or --fraction F (such as 0.01)")
    few = (
        listed(train_images, list_file)
        if list_file
        else fraction_per_class(train_images, fraction or 0.0, request.seed)
    )
    data["labelled"] = {"images": len(few), "list": str(list_file) if list_file else f"fraction {fraction}"}

    def evaluate(subject: Subject) -> Outcome:
        first = evaluation_vectors(protocol, subject.info, subject.backbone)[:1]
        return measure_vectors(
            first,
            lambda vector: evaluate_semi(
                subject.backbone,
                few,
                test_images,
                protocol,
                seed=subject.seed,
                runtime=request.runtime,
                vector=vector,
                identity=subject.identity,
            ),
        )

    task = Task(
        name="semi",
        headline="top1",
        parameters=parameters(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
        train_images=lambda seed: _centre_crops(few, protocol, request.runtime, seed),
    )
    return measure(request, task)


def run_svm(
    request: Request, *, train: Path | None, test: Path | None, voc: Path | None, splits: tuple[str, str]
) -> Evaluated:
    """`evaluate svm`, on class folders or VOC's classification lists."""
    from .svm import PROTOCOLS, evaluate_svm, folder_labels, voc_labels

    protocol = choose(PROTOCOLS, request)
    if voc is not None:
        train_images, train_labels = voc_labels(voc, splits[0])
        test_images, test_labels = voc_labels(voc, splits[1])
        data = {
            "train": train_images.record(),
            "test": test_images.record() | {"name": f"{voc.name}/{splits[1]}"},
        }
    elif train is not None and test is not None:
        train_images, test_images, data = _folders(train, test)
        train_labels, test_labels = folder_labels(train_images), folder_labels(test_images)
    else:
        raise UserError("give --train and --test (class folders), or --voc (the VOC layout)")

    def evaluate(subject: Subject) -> Outcome:
        def one(vector: Vector) -> Outcome:
            found = [
                _features(subject, images, protocol, vector, request).values.numpy()
                for images in (train_images, test_images)
            ]
            return evaluate_svm(found[0], train_labels, found[1], test_labels, protocol, seed=subject.seed)

        return measure_vectors(evaluation_vectors(protocol, subject.info, subject.backbone)[:1], one)

    task = Task(
        name="svm",
        headline="map",
        parameters=parameters(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
        train_images=lambda seed: _centre_crops(train_images, protocol, request.runtime, seed),
    )
    return measure(request, task)


def _folders(train: Path, test: Path) -> tuple[LabelledImages, LabelledImages, dict[str, Any]]:
    """Training and test class folders with the same classes."""
    train_images = class_folders(train)
    test_images = class_folders(test, train_images.classes)
    return train_images, test_images, {"train": train_images.record(), "test": test_images.record()}


def _features(
    subject: Subject, images: LabelledImages, protocol: FeatureProtocol, vector: Vector, request: Request
) -> Features:
    """Features at the protocol's size."""
    return extract_features(
        subject.backbone,
        images,
        image_size=protocol.image_size,
        vector=vector,
        workers=request.runtime.workers,
        device=request.runtime.device,
    )


def _centre_crops(
    images: LabelledImages, protocol: FeatureProtocol, runtime: Runtime, seed: int
) -> Iterable[Tensor]:
    """Images for BatchNorm's statistics, at the protocol's preprocessing."""
    return spread_crops(
        images,
        image_size=protocol.image_size,
        seed=seed,
        limit=ENOUGH_IMAGES,
        workers=runtime.workers,
        device=runtime.device,
    )

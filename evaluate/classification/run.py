"""The commands on labelled images, from paths to tasks: kNN, linear, few labels, SVM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.errors import UserError
from ...data.images.class_folders import LabelledImages, class_folders, fraction_per_class, listed, read_lines
from ...models.backbones.base import Vector
from ...models.batch_statistics import ENOUGH_IMAGES
from ...models.features import Features, spread_crops
from ...models.preprocess import default_resize
from ..features import FeatureStore
from ..identity import files_hash
from ..measure import Subject, Task
from ..processes import first_alone
from ..result import Outcome
from ..settings import Request, Runtime, choose, parameters
from .vectors import FeatureProtocol, evaluation_vectors, features, measure_vectors


def knn_task(request: Request, *, train: Path, test: Path) -> Task:
    """`evaluate knn`."""
    from .knn import PROTOCOLS, evaluate_knn

    protocol = choose(PROTOCOLS, request)
    train_images, test_images, data = _folders(train, test)

    def evaluate(subject: Subject) -> Outcome:
        runtime = _with_store(subject.runtime)

        def one(vector: Vector) -> Outcome:
            known, asked = _features(subject, runtime, train_images, test_images, protocol, vector)

            def vote() -> Outcome:
                with runtime.progress("neighbours of the test images", len(asked.labels)) as advance:
                    return evaluate_knn(known, asked, train_images.classes, protocol, advance=advance)

            return first_alone(vote)

        return measure_vectors(evaluation_vectors(protocol, subject.info, subject.backbone), one)

    return Task(
        name="knn",
        headline="top1",
        parameters={**parameters(protocol), "resize": default_resize(protocol.image_size)},
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
        train_images=lambda subject: _spread(subject, train_images, protocol),
        draws=False,
    )


def linear_task(request: Request, *, train: Path, test: Path) -> Task:
    """`evaluate linear`."""
    from .linear import PROTOCOLS, evaluate_linear

    protocol = choose(PROTOCOLS, request)
    train_images, test_images, data = _folders(train, test)

    def evaluate(subject: Subject) -> Outcome:
        vectors = evaluation_vectors(protocol, subject.info, subject.backbone)
        runtime = _with_store(subject.runtime)

        def one(vector: Vector) -> Outcome:
            folder = runtime.folder
            if folder is not None and vector != vectors[0]:
                folder = folder / vector  # a training of its own
            return evaluate_linear(
                subject.backbone,
                train_images,
                test_images,
                protocol,
                seed=subject.seed,
                runtime=runtime.replace(folder=folder),
                vector=vector,
                identity=subject.identity,
            )

        return measure_vectors(vectors, one)

    return Task(
        name="linear",
        headline="top1",
        parameters=parameters(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
        train_images=lambda subject: _spread(subject, train_images, protocol),
    )


def semi_task(
    request: Request, *, train: Path, test: Path, list_file: Path | None, fraction: float | None
) -> Task:
    """`evaluate semi`; the few images come from a list file, or are a fraction of each class."""
    from .semi import PROTOCOLS, evaluate_semi

    protocol = choose(PROTOCOLS, request)
    if (list_file is None) == (fraction is None):
        raise UserError("give either --list FILE or --fraction F (such as 0.01)")
    if list_file is not None:
        read_lines(list_file, "a text file with one image path per line")  # before a large folder is walked
    train_images, test_images, data = _folders(train, test)
    few = (
        listed(train_images, list_file)
        if list_file
        else fraction_per_class(train_images, fraction or 0.0, request.seed)
    )
    data["labelled"] = _record(few) | {"list": str(list_file) if list_file else f"fraction {fraction}"}

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
                runtime=subject.runtime,
                vector=vector,
                identity=subject.identity,
            ),
        )

    return Task(
        name="semi",
        headline="top1",
        parameters=parameters(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
        train_images=lambda subject: _spread(subject, few, protocol),
    )


def svm_task(
    request: Request, *, train: Path | None, test: Path | None, voc: Path | None, splits: tuple[str, str]
) -> Task:
    """`evaluate svm`, on class folders or VOC's classification lists."""
    from .svm import PROTOCOLS, evaluate_svm, folder_labels, voc_labels

    protocol = choose(PROTOCOLS, request)
    if voc is not None:
        train_images, train_labels = voc_labels(voc, splits[0])
        test_images, test_labels = voc_labels(voc, splits[1])
        data = {
            "train": _record(train_images, train_labels.values.tolist()),
            "test": _record(test_images, test_labels.values.tolist()) | {"name": f"{voc.name}/{splits[1]}"},
        }
    elif train is not None and test is not None:
        train_images, test_images, data = _folders(train, test)
        train_labels, test_labels = folder_labels(train_images), folder_labels(test_images)
    else:
        raise UserError("give --train and --test (class folders), or --voc (the VOC layout)")

    def evaluate(subject: Subject) -> Outcome:
        def one(vector: Vector) -> Outcome:
            runtime, seed = subject.runtime, subject.seed
            found = _features(subject, runtime, train_images, test_images, protocol, vector)
            known, asked = (each.values.numpy() for each in found)

            def fit() -> Outcome:
                with runtime.progress("machines", len(train_labels.classes)) as advance:
                    return evaluate_svm(
                        known, train_labels, asked, test_labels, protocol, seed=seed, advance=advance
                    )

            return first_alone(fit)

        return measure_vectors(evaluation_vectors(protocol, subject.info, subject.backbone)[:1], one)

    return Task(
        name="svm",
        headline="map",
        parameters=parameters(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
        train_images=lambda subject: _spread(subject, train_images, protocol),
    )


def _folders(train: Path, test: Path) -> tuple[LabelledImages, LabelledImages, dict[str, Any]]:
    """Training and test class folders with the same classes."""
    for folder in (train, test):  # before one of them, perhaps large, is walked
        if not folder.is_dir():
            raise UserError(f"no folder {folder}; give a folder with one folder of images per class")
    train_images = class_folders(train)
    test_images = class_folders(test, train_images.classes)
    return train_images, test_images, {"train": _record(train_images), "test": _record(test_images)}


def _record(images: LabelledImages, labels: list[Any] | None = None) -> dict[str, Any]:
    """JSON-able description with the hash of the files."""
    paths = [images.root / path for path in images.paths]
    return {**images.record(), "files": files_hash(paths, labels or images.labels, images.root)}


def _features(
    subject: Subject,
    runtime: Runtime,
    train_images: LabelledImages,
    test_images: LabelledImages,
    protocol: FeatureProtocol,
    vector: Vector,
) -> tuple[Features, Features]:
    """Features of the training and of the test images."""
    how: dict[str, Any] = {"image_size": protocol.image_size, "vector": vector, "runtime": runtime}
    return (
        features(subject.backbone, train_images, what="training", **how),
        features(subject.backbone, test_images, what="test", **how),
    )


def _with_store(runtime: Runtime) -> Runtime:
    """A runtime whose features are kept at least for this evaluation, whose vectors share the images."""
    return runtime if runtime.store is not None else runtime.replace(store=FeatureStore())


def _spread(subject: Subject, images: LabelledImages, protocol: FeatureProtocol) -> Iterator[Tensor]:
    """Images for BatchNorm's statistics, at the protocol's preprocessing."""
    return spread_crops(
        images,
        image_size=protocol.image_size,
        inputs=subject.backbone.inputs,
        seed=subject.seed,
        limit=ENOUGH_IMAGES,
        workers=subject.runtime.workers,
        device=subject.runtime.device,
    )

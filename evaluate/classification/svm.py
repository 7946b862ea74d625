"""`evaluate svm`: linear support vector machines on frozen features, one per class.

`svm-voc07`: squared hinge, C per class by 3-fold cross-validation, mean average precision over the classes,
11-point as VOC 2007 defines it (after Goyal et al., ICCV 2019, arXiv 1905.01235; positives count twice).
Features have length 1.
`svm-voc07-lowshot`: the same with k positives and (K - 1) k negatives per class, drawn by the seed, so
--runs 5 gives the spread over five draws.
Labels: VOC's ImageSets/Main/<class>_<split>.txt (1 positive, -1 negative, 0 difficult: left out), or class
folders (one against the rest).
Shape legend: N images, C channels, K classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from ...common.config import CountOrZero, Positive
from ...common.errors import UserError
from ...common.randomness import counter_generator
from ...common.terminal.progress import Advance
from ...data.images.class_folders import LabelledImages, read_lines
from ..detection.voc_metric import voc_classification_ap
from ..result import Outcome
from .vectors import FeatureProtocol


class SvmProtocol(FeatureProtocol):
    """Parameters of the machines."""

    costs: Annotated[tuple[Positive, ...], Field(min_length=1)] = tuple(
        2.0**power for power in range(-9, 6, 2)
    )
    folds: int = Field(default=3, ge=1, le=1000)
    positives: CountOrZero = 0  # k of low shot; 0 takes all
    positive_weight: Positive = 2.0
    max_iterations: Annotated[int, Field(ge=1, le=2**31 - 1)] = 5000  # liblinear counts in 32 bits


PROTOCOLS = {"svm-voc07": SvmProtocol(), "svm-voc07-lowshot": SvmProtocol(positives=8)}


@dataclass(frozen=True)
class MultiLabels:
    """Labels of N images for K classes: (N, K) int8, 1, -1, or 0 where the class does not count."""

    values: np.ndarray
    classes: tuple[str, ...]


def folder_labels(images: LabelledImages) -> MultiLabels:
    """One against the rest from class folders."""
    labels = np.full((len(images), len(images.classes)), -1, np.int8)
    labels[np.arange(len(images)), list(images.labels)] = 1
    return MultiLabels(labels, images.classes)


def voc_labels(root: Path, split: str) -> tuple[LabelledImages, MultiLabels]:
    """Images and labels of a VOC classification split.

    Raises:
        UserError: if there is no class list of that split, a list is broken, or an image is missing.
    """
    folder = root / "ImageSets" / "Main"
    files = sorted(folder.glob(f"*_{split}.txt"))
    if not files:
        raise UserError(f"no {folder}/<class>_{split}.txt; --voc wants VOC's classification lists")
    rows: dict[str, dict[str, int]] = {}
    classes = tuple(path.name.removesuffix(f"_{split}.txt") for path in files)
    for path, name in zip(files, classes, strict=True):
        for line in read_lines(path, "VOC's classification lists"):
            parts = line.split()
            if len(parts) != 2 or parts[1] not in {"1", "-1", "0"}:
                raise UserError(f"{path}: want an image's name and 1, -1 or 0 in a line, not {line!r}")
            rows.setdefault(parts[0], {})[name] = int(parts[1])
    for image in rows:
        if not (root / "JPEGImages" / f"{image}.jpg").is_file():
            raise UserError(f"{folder} names {image}, but there is no {root}/JPEGImages/{image}.jpg")
    names = sorted(rows)
    labels = np.asarray([[rows[image].get(name, 0) for name in classes] for image in names], np.int8)
    images = LabelledImages(
        root=root / "JPEGImages",
        paths=tuple(f"{image}.jpg" for image in names),
        labels=(0,) * len(names),
        classes=classes,
    )
    return images, MultiLabels(labels, classes)


def evaluate_svm(
    train: np.ndarray,
    train_labels: MultiLabels,
    test: np.ndarray,
    test_labels: MultiLabels,
    protocol: SvmProtocol,
    *,
    seed: int,
    advance: Advance | None = None,
) -> Outcome:
    """Train one machine per class on features (N, C), measure its ranking of the test features.

    Args:
        train, train_labels, test, test_labels: of the images.
        protocol: one of `PROTOCOLS`, perhaps changed.
        seed: of the folds, and of the examples of low shot.
        advance: called with 1 for each class that is done.

    Returns:
        `map` in [0, 1], 11-point AP per class (None where the test set has no positive).

    Raises:
        UserError: if no class has both labels in training and a positive in the test set.
    """
    train, test = l2_normalize(train), l2_normalize(test)
    per_class: dict[str, float | None] = {}
    for number, name in enumerate(train_labels.classes):
        if advance is not None and number:
            advance(1)
        labels, truth = train_labels.values[:, number], test_labels.values[:, number]
        negatives = protocol.positives * (len(train_labels.classes) - 1)
        chosen = _few(labels, protocol.positives, negatives, seed, number)
        counted = truth != 0
        if not (truth == 1).any() or not (labels[chosen] == 1).any() or not (labels[chosen] == -1).any():
            per_class[name] = None
            continue
        machine = _fit_best(train[chosen], labels[chosen], protocol, seed)
        scores = machine.decision_function(test[counted])
        per_class[name] = voc_classification_ap(scores, truth[counted] == 1)
    values = [value for value in per_class.values() if value is not None]
    if not values:
        raise UserError("no class has positives and negatives in training and a positive in the test set")
    return Outcome(metrics={"map": float(np.mean(values))}, per_class=per_class)


def l2_normalize(features: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12))


def _few(labels: np.ndarray, positives: int, negatives: int, seed: int, number: int) -> np.ndarray:
    """Rows that count; with `positives` only that many of either label, drawn by seed."""
    rows = np.flatnonzero(labels != 0)
    if not positives:
        return rows
    generator = counter_generator(seed, 0, number, 0, "low_shot")
    kept = [
        generator.permutation(rows[labels[rows] == label])[:count]
        for label, count in ((1, positives), (-1, negatives))
    ]
    return np.sort(np.concatenate(kept))


def _fit_best(features: np.ndarray, labels: np.ndarray, protocol: SvmProtocol, seed: int) -> LinearSVC:
    """Fit at the cost whose held-out average precision is best; the smallest of equals."""
    folds = min(protocol.folds, int((labels == 1).sum()), int((labels == -1).sum()))
    best = protocol.costs[len(protocol.costs) // 2]  # one positive cannot be held out
    if folds >= 2:
        fold = np.zeros(len(labels), int)
        for label in (1, -1):  # each fold gets its part of both
            rows = np.flatnonzero(labels == label)
            order = counter_generator(seed, 0, int(label > 0), 0, "folds").permutation(len(rows))
            fold[rows] = order % folds
        quality = [
            np.mean([_held_out(features, labels, fold == part, cost, protocol) for part in range(folds)])
            for cost in protocol.costs
        ]
        best = protocol.costs[int(np.argmax(quality))]
    return _fit(features, labels, best, protocol)


def _held_out(
    features: np.ndarray, labels: np.ndarray, held: np.ndarray, cost: float, protocol: SvmProtocol
) -> float:
    """Average precision on the held-out rows."""
    machine = _fit(features[~held], labels[~held], cost, protocol)
    return voc_classification_ap(machine.decision_function(features[held]), labels[held] == 1)


def _fit(features: np.ndarray, labels: np.ndarray, cost: float, protocol: SvmProtocol) -> LinearSVC:
    """One machine: squared hinge, L2."""
    machine = LinearSVC(
        C=cost,
        loss="squared_hinge",
        penalty="l2",
        dual=True,
        class_weight={1: protocol.positive_weight, -1: 1.0},
        max_iter=protocol.max_iterations,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            machine.fit(features, labels)
        except ConvergenceWarning as error:
            raise UserError(
                f"a support vector machine (C = {cost:g}) did not converge in {protocol.max_iterations} "
                "iterations; raise --set max_iterations=N"
            ) from error
    return machine

"""`evaluate semi`: learning from 1 % or 10 % of the labels.

`semi-finetune`: the whole network is fine-tuned on the listed images (as PIRL, arXiv 1912.01991, and its
successors do; the published 1 % and 10 % lists of ImageNet are given by file). Rates, epochs and schedule are
our own choice, stated in the result: papers tune them per method.
`logistic-1pct`: scikit-learn's logistic regression on the frozen features of the listed images (as MSN,
arXiv 2204.07141, measures 1 % ImageNet); features have length 1, C is chosen by cross-validation on the list.
Shape legend: B images, N listed images, C channels, K classes.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn
from torch.nn import functional

from ...common.config import Count, NotNegative, Positive
from ...common.errors import UserError
from ...data.images.class_folders import LabelledImages
from ...engine.optimizers import OptimizerSettings
from ...engine.schedule import ScheduleSettings
from ...models.backbones.base import Backbone, Vector
from ...models.features import Features, evaluation_vector
from ...models.preprocess import normalize
from ...pretrain.methods.base import Output
from ..batches import TaskBatch, TaskBatches
from ..finetune import train
from ..processes import first_alone
from ..result import Outcome
from ..settings import Runtime, parameters
from .crops import RandomCrops
from .knn import classification_outcome
from .linear import LinearClassifier, predict_crops
from .vectors import FeatureProtocol, features


class SemiProtocol(FeatureProtocol):
    """Parameters of fine-tuning on few labels."""

    epochs: Count = 30
    batch_size: Count = 256
    base_lr: Positive = 0.02  # of the backbone, for 256 images
    head_lr_scale: Positive = 10.0  # the new layer learns faster than the trained ones
    weight_decay: NotNegative = 0.0


class LogisticProtocol(FeatureProtocol):
    """Parameters of the logistic regression."""

    inverse_regularisations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.1, 1.0, 10.0, 100.0)
    folds: int = Field(default=3, ge=1, le=1000)
    max_iterations: Count = 2000


PROTOCOLS: dict[str, SemiProtocol | LogisticProtocol] = {
    "semi-finetune": SemiProtocol(),
    "logistic-1pct": LogisticProtocol(),
}


class FineTunedClassifier(LinearClassifier):
    """A linear layer on a backbone that is trained with it."""

    def __init__(self, backbone: Backbone, classes: int, seed: int, vector: Vector = "mean") -> None:
        """Register the backbone, so that it trains and is saved."""
        super().__init__(backbone.channels[backbone.last], classes, norm=False, vector=vector, seed=seed)
        self.backbone: Backbone = backbone
        self.inputs = backbone.inputs

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 images to (B, K)."""
        scores: Tensor = self.classifier(
            evaluation_vector(self.backbone, normalize(inputs, self.inputs), self.vector)
        )
        return scores

    def forward(self, batch: TaskBatch) -> Output:
        """Cross-entropy of a batch of (images, labels)."""
        images, labels = batch.values
        return Output(loss=functional.cross_entropy(self.logits(images), labels))


def evaluate_semi(
    backbone: Backbone,
    few: LabelledImages,
    test_images: LabelledImages,
    protocol: SemiProtocol | LogisticProtocol,
    *,
    seed: int,
    runtime: Runtime,
    vector: Vector = "mean",
    identity: dict[str, Any] | None = None,
) -> Outcome:
    """Learn from the few listed images, measure on the centre crops of `test_images`.

    Args:
        backbone: fine-tuned in place by `semi-finetune`.
        few: the listed images.
        test_images: with the same classes.
        protocol: one of `PROTOCOLS`, perhaps changed; a batch larger than the list is cut to it.
        seed: of the order, the crops and the new layer; the logistic regression draws nothing.
        runtime: device, workers, run folder.
        vector: what is classified.
        identity: JSON-able, what the run folder must be of; part of the checkpoint.

    Returns:
        `top1` (and `top5`) in [0, 1], accuracy per class, confusion.
    """
    if isinstance(protocol, LogisticProtocol):
        return _frozen(backbone, few, test_images, protocol, runtime=runtime, vector=vector)
    model = FineTunedClassifier(backbone, len(few.classes), seed, vector)
    batches = TaskBatches(
        RandomCrops(few, protocol.image_size, backbone.inputs),
        batch_size=min(protocol.batch_size, len(few)),
        seed=seed,
        workers=runtime.workers,
        device=runtime.device,
    )
    curve = train(
        model,
        batches,
        steps=protocol.epochs * batches.steps_per_epoch,
        optimizer=OptimizerSettings(
            name="sgd", base_lr=protocol.base_lr, momentum=0.9, weight_decay=protocol.weight_decay
        ),
        schedule=ScheduleSettings(name="cosine"),
        seed=seed,
        runtime=runtime,
        config={"protocol": parameters(protocol), "vector": vector, "seed": seed, **(identity or {})},
        groups=_groups(model, protocol),
    )
    scores, labels = predict_crops(model, test_images, image_size=protocol.image_size, runtime=runtime)
    return dataclasses.replace(classification_outcome(scores, labels, few.classes), curves={"loss": curve})


def _frozen(
    backbone: Backbone,
    few: LabelledImages,
    test_images: LabelledImages,
    protocol: LogisticProtocol,
    *,
    runtime: Runtime,
    vector: Vector,
) -> Outcome:
    """Logistic regression on frozen features."""
    train_features, test_features = (
        features(backbone, images, image_size=protocol.image_size, vector=vector, runtime=runtime, what=what)
        for what, images in (("listed", few), ("test", test_images))
    )

    def fit() -> Outcome:
        scores = logistic_scores(train_features, test_features, len(few.classes), protocol)
        return classification_outcome(scores, test_features.labels, few.classes)

    return first_alone(fit)


def _groups(model: FineTunedClassifier, protocol: SemiProtocol) -> list[dict[str, Any]]:
    """The backbone at the rate, the new layer at a multiple of it."""

    def values(module: nn.Module) -> list[nn.Parameter]:
        return list(module.parameters())

    return [
        {"params": values(model.backbone)},
        {"params": values(model.classifier), "lr_scale": protocol.head_lr_scale},
    ]


def logistic_scores(few: Features, test: Features, classes: int, protocol: LogisticProtocol) -> Tensor:
    """Log probabilities (N, K) of a logistic regression; classes without a listed image get -inf.

    Raises:
        UserError: if fewer than two classes are listed, or the regression does not converge.
    """
    if len(torch.unique(few.labels)) < 2:
        raise UserError("the list holds one class only; a classifier needs images of at least two")
    train_rows, test_rows = (functional.normalize(each.values, dim=1).numpy() for each in (few, test))
    folds = min(protocol.folds, int(torch.bincount(few.labels)[torch.unique(few.labels)].min()))
    # with one image in some class no fold can be held out for it: the middle of the list of C is taken
    options = protocol.inverse_regularisations
    plain = LogisticRegression(max_iter=protocol.max_iterations, C=options[len(options) // 2])
    searched = GridSearchCV(plain, {"C": list(options)}, cv=folds) if folds >= 2 else plain
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            searched.fit(train_rows, few.labels.numpy())
        except ConvergenceWarning as error:
            raise UserError(
                f"the logistic regression did not converge in {protocol.max_iterations} iterations; "
                "raise --set max_iterations=N"
            ) from error
    scores = np.full((len(test_rows), classes), -np.inf)
    known = searched.classes_
    scores[:, known] = searched.predict_log_proba(test_rows)
    return torch.from_numpy(scores)

"""`evaluate linear`: a linear classifier on the frozen backbone.

`linear-moco` (He et al., CVPR 2020, arXiv 1911.05722, section 4.1): SGD, rate 30 for 256 images, no weight
decay, 100 epochs, divided by 10 at 60 and 80; random resized crops and flips; the mean over the last map.
`linear-moco-cached`: the same classifier on stored features of the centre crops: minutes instead of days, and
not the same number; each channel is standardised, which the rate of 1 wants. Our own choice.
`linear-mae` for ViTs (arXiv 2111.06377, A.2): BatchNorm without affine, then linear; LARS, rate .1 for 256
images, batch 16384, 90 epochs, 10 of warm-up, cosine. LARS is the training engine's, which agrees with
timm's.
The backbone is in eval mode and gets no gradient; a method names the vector that is classified.
Shape legend: B images, C channels, K classes, S side of the crop in pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...common.config import Count, NotNegative, Positive
from ...data.images.class_folders import LabelledImages
from ...data.images.inputs import RGB, Inputs
from ...engine.optimizers import OptimizerSettings
from ...engine.schedule import ScheduleSettings
from ...models.backbones.base import Backbone, Vector
from ...models.features import Features, crop_batches, evaluation_vector
from ...models.preprocess import normalize
from ...pretrain.methods.base import Output
from ..batches import StoredSamples, TaskBatch, TaskBatches
from ..finetune import Curve, train
from ..processes import first_alone, gather_to_all, share, together
from ..result import Outcome
from ..settings import Runtime, parameters
from .crops import RandomCrops
from .knn import classification_outcome
from .vectors import FeatureProtocol, features

TEST_BATCH = 64  # images


class LinearProtocol(FeatureProtocol):
    """Parameters of a linear protocol."""

    epochs: Count
    batch_size: Count
    base_lr: Positive  # for 256 images
    optimizer: Literal["sgd", "lars"]
    schedule: Literal["steps", "cosine"]
    norm: bool  # BatchNorm without affine before the classifier
    cached: bool
    weight_decay: NotNegative = 0.0
    warmup_epochs: NotNegative = 0.0


PROTOCOLS = {
    "linear-moco": LinearProtocol(
        epochs=100,
        batch_size=256,
        base_lr=30.0,
        optimizer="sgd",
        schedule="steps",
        norm=False,
        cached=False,
    ),
    "linear-moco-cached": LinearProtocol(
        epochs=100, batch_size=256, base_lr=1.0, optimizer="sgd", schedule="steps", norm=True, cached=True
    ),
    "linear-mae": LinearProtocol(
        epochs=90,
        batch_size=16_384,
        base_lr=0.1,
        optimizer="lars",
        schedule="cosine",
        norm=True,
        cached=False,
        warmup_epochs=10,
    ),
}


class LinearClassifier(nn.Module):
    """A linear layer on features or, with a frozen backbone, on images."""

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        norm: bool,
        backbone: Backbone | None = None,
        vector: Vector = "mean",
        seed: int = 0,
    ) -> None:
        """Start at N(0, .01) and bias 0, as MoCo and MAE do; `backbone` is used, not trained or saved."""
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, affine=False, eps=1e-6) if norm else nn.Identity()
        self.classifier = nn.Linear(channels, classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.classifier.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.classifier.bias)
        self.vector = vector
        self._frozen = (backbone,)  # in a tuple: not a submodule
        self.inputs: Inputs = RGB if backbone is None else backbone.inputs  # how its images are read

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, C) features, or (B, 3, S, S) uint8 images with a backbone, to (B, K)."""
        backbone = self._frozen[0]
        if backbone is not None:
            with torch.no_grad():
                inputs = evaluation_vector(backbone, normalize(inputs, self.inputs), self.vector).float()
        scores: Tensor = self.classifier(self.norm(inputs))
        return scores

    def forward(self, batch: TaskBatch) -> Output:
        """Cross-entropy of a batch of (inputs, labels)."""
        inputs, labels = batch.values
        return Output(loss=functional.cross_entropy(self.logits(inputs), labels))


def evaluate_linear(
    backbone: Backbone,
    train_images: LabelledImages,
    test_images: LabelledImages,
    protocol: LinearProtocol,
    *,
    seed: int,
    runtime: Runtime,
    vector: Vector = "mean",
    identity: dict[str, Any] | None = None,
) -> Outcome:
    """Train the classifier on `train_images`, measure on the centre crops of `test_images`.

    Args:
        backbone: frozen, in eval mode.
        train_images, test_images: with the same classes.
        protocol: one of `PROTOCOLS`, perhaps changed; a batch larger than the training set is cut to it, at
            the same rate per 256 images.
        seed: of the order, the crops and the classifier.
        runtime: device, workers, run folder.
        vector: what is classified.
        identity: JSON-able, what the run folder must be of; part of the checkpoint.

    Returns:
        `top1` (and `top5`) in [0, 1], accuracy per class, confusion, the loss curve.
    """
    backbone.to(runtime.device).eval()
    how: dict[str, Any] = {"image_size": protocol.image_size, "vector": vector, "runtime": runtime}
    test = features(backbone, test_images, what="test", **how)
    config = {"protocol": parameters(protocol), "vector": vector, "seed": seed, **(identity or {})}
    classifier = LinearClassifier(
        backbone.channels["class" if vector == "class" else backbone.last],
        len(train_images.classes),
        norm=protocol.norm,
        backbone=None if protocol.cached else backbone,
        vector=vector,
        seed=seed,
    )

    def fit(samples: StoredSamples | RandomCrops) -> Curve:
        return fit_classifier(classifier, samples, protocol, seed=seed, runtime=runtime, config=config)

    def measure(curve: Curve) -> Outcome:
        outcome = _classify(classifier, test, train_images.classes, runtime)
        return dataclasses.replace(outcome, curves={"loss": curve})

    if protocol.cached:  # one process trains on stored features in no time
        stored = features(backbone, train_images, what="training", **how)
        return first_alone(lambda: measure(fit(StoredSamples(stored.values, stored.labels))))
    curve = fit(RandomCrops(train_images, protocol.image_size, backbone.inputs))
    return first_alone(lambda: measure(curve))


@torch.inference_mode()
def _classify(
    classifier: LinearClassifier, test: Features, classes: tuple[str, ...], runtime: Runtime
) -> Outcome:
    """Measure a trained classifier on stored features."""
    normed = classifier.norm(test.values.to(runtime.device))
    return classification_outcome(classifier.classifier(normed).float().cpu(), test.labels, classes)


def fit_classifier(
    classifier: LinearClassifier,
    samples: StoredSamples | RandomCrops,
    protocol: LinearProtocol,
    *,
    seed: int,
    runtime: Runtime,
    config: dict[str, Any],
) -> Curve:
    """Train the linear layer over whole epochs; give the loss curve."""
    batches = TaskBatches(
        samples,
        batch_size=min(protocol.batch_size, len(samples)),
        seed=seed,
        workers=0 if protocol.cached else runtime.workers,
        device=runtime.device,
    )
    steps_schedule = ScheduleSettings(name="steps", milestones=(0.6, 0.8))
    cosine = ScheduleSettings(name="cosine", warmup_epochs=protocol.warmup_epochs)
    return train(
        classifier,
        batches,
        steps=protocol.epochs * batches.steps_per_epoch,
        optimizer=OptimizerSettings(
            name=protocol.optimizer,
            base_lr=protocol.base_lr,
            momentum=0.9,
            weight_decay=protocol.weight_decay,
        ),
        schedule=steps_schedule if protocol.schedule == "steps" else cosine,
        seed=seed,
        runtime=runtime,
        config=config,
    )


def predict_crops(
    classifier: LinearClassifier, images: LabelledImages, *, image_size: int, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Scores (N, K) and labels (N,) of the centre crops, for a classifier that holds its backbone.

    The processes share the images, and all of them get all scores.
    """
    scores, labels = [], []
    classifier.eval()
    mine = images.select(list(share(len(images), TEST_BATCH)))
    with together(), torch.no_grad(), runtime.progress("test images", len(mine)) as advance:
        for crops, numbers in crop_batches(
            mine,
            image_size=image_size,
            batch_size=TEST_BATCH,
            inputs=classifier.inputs,
            workers=runtime.workers,
            device=runtime.device,
        ):
            scores.append(classifier.logits(crops).float().cpu())
            labels.append(numbers.cpu())
            advance(len(crops))
    parts = gather_to_all((scores, labels))
    found, truth = (torch.cat([batch for part in parts for batch in part[kind]]) for kind in (0, 1))
    return found, truth

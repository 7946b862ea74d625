"""Which vector of a backbone stands for an image: what the method trained, unless the user says otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from ...common.config import Settings
from ...data.images.class_folders import LabelledImages
from ...models.backbones.base import Backbone, Vector
from ...models.features import Features
from ...models.weights import WeightsInfo
from ...pretrain.config.settings import ImageSize
from ...pretrain.methods.registry import METHODS, method_class
from ..features import frozen_vectors
from ..result import Outcome
from ..settings import Runtime


class FeatureProtocol(Settings):
    """What every protocol on one vector per image shares.

    `vector` is `mean` (over the cells of the last map; of a ViT the mean patch token), `class` (a ViT's class
    token), or `auto`: what the method of the weights names, `mean` where no method is known.
    """

    image_size: ImageSize = 224
    vector: Literal["auto", "mean", "class"] = "auto"


def evaluation_vectors(
    protocol: FeatureProtocol, info: WeightsInfo, backbone: Backbone
) -> tuple[Vector, ...]:
    """The vectors to measure, the headline's first.

    Args:
        protocol: whose `vector` counts where it is not `auto`.
        info: of the weights, with the method that trained them if that is known.
        backbone: without a class token (a ResNet) it has its mean only.
    """
    if protocol.vector != "auto":
        return (protocol.vector,)
    if info.method not in METHODS or "class" not in backbone.channels:
        return ("mean",)
    return method_class(info.method).evaluation_vectors


def features(
    backbone: Backbone,
    images: LabelledImages,
    *,
    image_size: int,
    vector: Vector,
    runtime: Runtime,
    what: str,
) -> Features:
    """One kind of vector of the centre crops, (N, C); on other processes than the first nothing.

    Args:
        backbone: frozen.
        images: N images.
        image_size: side of the crops, pixels.
        vector: which.
        runtime: device, workers, progress, and the store that keeps what was found.
        what: names the images where progress is shown.
    """
    return frozen_vectors(
        backbone,
        images,
        image_size=image_size,
        vectors=(vector,),
        workers=runtime.workers,
        device=runtime.device,
        progress=lambda total: runtime.progress(f"features of the {what} images", total),
        store=runtime.store,
    )[vector]


def measure_vectors(vectors: tuple[Vector, ...], evaluate: Callable[[Vector], Outcome]) -> Outcome:
    """Evaluate each vector; the first gives the result, the metrics of the others are added under its name.

    Such as `top1` of the class token and `top1_mean` of the mean patch token.
    """
    first, *others = (evaluate(vector) for vector in vectors)
    metrics = {
        f"{name}_{vector}": value
        for vector, outcome in zip(vectors[1:], others, strict=True)
        for name, value in outcome.metrics.items()
    }
    return dataclasses.replace(first, metrics=first.metrics | metrics, vectors=vectors)

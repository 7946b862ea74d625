"""What the demo's short pretraining has learnt, measured on collages it never saw: before and after.

Before: the same network with random weights, its BatchNorm statistics estimated on the training collages.
Both are frozen; k nearest neighbours name the object, and a linear classifier on every cell of the map tells
foreground from background.

Shape legend: N collages, V side of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..common.terminal.progress import show_progress
from ..data.images.decode import read_image
from ..evaluate.classification.run import knn_task
from ..evaluate.measure import Task, measure
from ..evaluate.segmentation.run import SegmentationData, segment_task
from ..evaluate.settings import Request, Runtime
from ..models.backbones.base import Backbone
from ..models.batch_statistics import reestimate_batchnorm
from ..models.preprocess import as_tensor, centre_crop, normalize
from ..models.weights import load_backbone
from ..pretrain.config.settings import RunSettings
from ..pretrain.report.features import components
from .folder import Folder
from .gallery import shown_pictures

SHOWN, SIDE = 6, 256  # collages with their features, and the side they are computed at


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1] on unseen collages: kNN accuracy, and mean IoU of foreground and background."""

    objects: float
    foreground: float


@dataclass(frozen=True)
class Learning:
    """Scores before and after, and (V, 3 V, 3) uint8 pictures: a collage, features before, features after."""

    before: Scores
    after: Scores
    pictures: list[NDArray[np.uint8]]

    def in_words(self) -> str:
        """Both scores before and after, in per cent."""
        before, after = self.before, self.after
        return (
            f"object named by its neighbours from {100 * before.objects:.1f} to {100 * after.objects:.1f} %, "
            f"foreground mIoU from {100 * before.foreground:.1f} to {100 * after.foreground:.1f} %"
        )


def measure_learning(
    seen: Folder, unseen: Folder, weights: Path, settings: RunSettings, probe_steps: int
) -> Learning:
    """Measure random weights and the trained ones.

    Args:
        seen: the collages that were trained on; the labels of the measurement come from them.
        unseen: other collages of the same objects.
        weights: the run's backbone.
        settings: of the run.
        probe_steps: of the classifier that tells foreground from background.
    """
    device = torch.device(settings.device if settings.device != "auto" else "cpu")
    requests = [
        Request(
            weights=name,
            protocol="",
            arch=arch,
            stem=settings.stem,
            image_size=settings.image_size,
            seed=settings.seed,
            runtime=Runtime(device=device, progress=show_progress),
            say=lambda text: None,
        )
        for name, arch in (("random", settings.arch), (str(weights), None))
    ]
    before, after = (_scores(request, seen, unseen, probe_steps) for request in requests)
    networks = [
        load_backbone(each.weights, arch=each.arch, image_size=each.image_size, stem=each.stem)[0]
        for each in requests
    ]
    names = shown_pictures(unseen)[1][:SHOWN]
    return Learning(before, after, feature_pictures(networks, unseen.images, names))


def _scores(request: Request, seen: Folder, unseen: Folder, probe_steps: int) -> Scores:
    """KNN and foreground probe of one network."""
    neighbours = max(1, min(20, len(seen.collages) // len(seen.labels)))  # no more than a class has
    knn = request.replace(protocol="knn-dino", changes={"k": str(neighbours)})
    probe = request.replace(protocol="seg-probe", changes={"steps": str(probe_steps)})
    labels = SegmentationData(
        images=seen.images,
        labels=seen.truth,
        test_images=unseen.images,
        test_labels=unseen.truth,
        binary=True,
        classes=2,
    )
    return Scores(
        objects=_headline(knn, knn_task(knn, train=seen.images, test=unseen.images)),
        foreground=_headline(probe, segment_task(probe, labels)),
    )


def _headline(request: Request, task: Task) -> float:
    """Run a task; its headline number."""
    result, _ = measure(request, task)
    return float(result["mean"][result["headline"]])


def feature_pictures(
    networks: Sequence[Backbone], images: Path, names: Sequence[str]
) -> list[NDArray[np.uint8]]:
    """Collages beside the principal components of two networks' maps, the first of random weights.

    Args:
        networks: before and after.
        images: the folder.
        names: of the collages in it.

    Returns:
        (V, 3 V, 3) uint8 each.
    """
    read = [as_tensor(read_image(images / name)) for name in names]
    pixels = normalize(torch.stack([centre_crop(image, crop=SIDE) for image in read]))
    reestimate_batchnorm(networks[0], [pixels], device="cpu")
    (shown, before), (_, after) = (components(network.eval(), pixels) for network in networks)
    return [np.concatenate(tiles, axis=1) for tiles in zip(shown, before, after, strict=True)]

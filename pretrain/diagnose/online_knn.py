"""The online kNN: a number that says during training whether the features get better, and what it costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ...common.randomness import counter_generator
from ...data.images.class_folders import LabelledImages, class_folders
from ...engine.distributed import World
from ...models.backbones.base import Backbone, Vector
from ...models.batch_statistics import ENOUGH_IMAGES, is_untouched, reestimated_copy
from ...models.features import extract_features, spread_crops
from ...models.knn import knn_accuracy
from ..config.settings import RunSettings
from ..methods.registry import method_class

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
LARGEST_FRACTION = 0.1  # of a run, before it is told how to spend less


class OnlineKnn:
    """Call it between steps: the vote of training images on test images of the same classes.

    Args:
        backbone: what is measured, on the device.
        device: where the backbone is.
        size: side of the crops, pixels.
        train, test: the images that vote and those that are asked.
        vector: what stands for an image; the method names it.
        clock: gives seconds.
    """

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        *,
        size: int,
        train: LabelledImages,
        test: LabelledImages,
        vector: Vector = "mean",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backbone, self.device, self.size, self.vector = backbone, device, size, vector
        self.train, self.test = train, test
        self._clock = clock
        self._first_ended: float | None = None
        self._spent = 0.0  # seconds, without the first call, before which nothing was trained
        self._warned = False

    @classmethod
    def from_settings(cls, settings: RunSettings, backbone: Backbone, world: World) -> OnlineKnn | None:
        """Read the two folders' lists and draw from them; None when the run asks for no kNN.

        Raises:
            UserError: if a folder holds no class folders, or the second one a class that the first lacks.
        """
        if settings.knn_train is None or settings.knn_val is None:
            return None
        whole = class_folders(Path(settings.knn_train))
        folders = (whole, class_folders(Path(settings.knn_val), whole.classes))
        train, test = (
            images.select(draw_images(len(images), settings.knn_images, seed=settings.seed, which=which))
            for which, images in enumerate(folders)
        )
        logger.info(
            "online kNN before the first step and then %s, while training waits: %s against %s (knn_images)",
            {0: "once an epoch", 1: "after every step"}.get(
                settings.knn_every, f"every {settings.knn_every} steps"
            ),
            f"{len(test)} of {len(folders[1])} images",
            f"{len(train)} of {len(whole)} images",
        )
        method = method_class(settings.method)
        vector = method.evaluation_vectors[0] if "class" in backbone.channels else "mean"
        size = settings.image_size
        return cls(backbone, world.device, size=size, train=train, test=test, vector=vector)

    def __call__(self) -> dict[str, float]:
        """Measure the accuracy on the second folder; about as long as a forward pass over both.

        Before the first step a copy with BatchNorm statistics of training images is measured: with untouched
        ones the row of random weights stands above what any training reaches at first.
        """
        began = self._clock()
        backbone = self.backbone
        if is_untouched(backbone) and not backbone.has_weights:  # old files lack BatchNorm's counters
            crops = spread_crops(
                self.train, image_size=self.size, inputs=backbone.inputs, seed=0, limit=ENOUGH_IMAGES
            )
            backbone = reestimated_copy(backbone, crops, device=self.device)
        train, test = (
            extract_features(backbone, images, image_size=self.size, vector=self.vector, device=self.device)
            for images in (self.train, self.test)
        )
        accuracy = knn_accuracy(train.values, train.labels, test.values, test.labels, k=NEIGHBOURS)
        self._note_cost(began, self._clock())
        return {"knn/accuracy": accuracy}

    def _note_cost(self, began: float, ended: float) -> None:
        """Announce what one call takes, and warn once where the calls take much of the run."""
        if self._first_ended is None:
            self._first_ended = ended
            logger.info("the online kNN takes %.1f s each time", ended - began)
            return
        self._spent += ended - began
        fraction = self._spent / max(ended - self._first_ended, 1e-9)
        if fraction > LARGEST_FRACTION and not self._warned:
            self._warned = True
            logger.warning(
                "the online kNN takes %.0f %% of the time (%.1f s each); measure less often (--set "
                "knn_every=STEPS) or fewer images (--set knn_images=NUMBER)",
                100 * fraction,
                ended - began,
            )


def draw_images(number: int, wanted: int, *, seed: int, which: int) -> list[int]:
    """Draw places of a list without replacement, by seed; in order.

    Args:
        number: images in the list.
        wanted: how many; 0, or more than there are, takes all.
        seed: the run's, so that every measurement of a run and of its resume asks the same images.
        which: number of the list, so that two lists are drawn apart.
    """
    if not wanted or wanted >= number:
        return list(range(number))
    generator = counter_generator(seed, 0, 0, which, "online knn")
    return sorted(generator.choice(number, wanted, replace=False).tolist())

"""The online kNN: a number that says during training whether the features get better, and what it costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ...common.randomness import counter_generator
from ...engine.distributed import World
from ...models.backbones.base import Backbone
from ...models.knn import centre_views, knn_accuracy, labelled_folder, pooled_features
from ..config.settings import RunSettings

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
LARGEST_FRACTION = 0.1  # of a run, before it is told how to spend less


class OnlineKnn:
    """Call it between steps; the classes of the two folders are matched by name.

    Args:
        backbone: what is measured, on the device.
        device: where the backbone is.
        size: side of the centre views, pixels.
        folders: of class folders: the one that votes and the one that is asked.
        paths: images of each, relative to the folder.
        labels: (N,) int64 of each.
        clock: gives seconds.
    """

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        *,
        size: int,
        folders: tuple[str, str],
        paths: tuple[list[str], list[str]],
        labels: tuple[Tensor, Tensor],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backbone, self.device, self.size = backbone, device, size
        self.folders, self.paths, self.labels = folders, paths, labels
        self._clock = clock
        self._first_ended: float | None = None
        self._spent = 0.0  # seconds, without the first call, before which nothing was trained
        self._warned = False

    @classmethod
    def from_settings(cls, settings: RunSettings, backbone: Backbone, world: World) -> OnlineKnn | None:
        """Read the two folders' lists and draw from them; None when the run asks for no kNN."""
        if settings.knn_train is None or settings.knn_val is None:
            return None
        folders = (settings.knn_train, settings.knn_val)
        train, val = (labelled_folder(folder) for folder in folders)
        # a class that only one folder has keeps a number of its own and is never predicted right
        number = {name: position for position, name in enumerate(sorted({*train[2], *val[2]}))}
        paths, labels, counts = [], [], []
        for which, (names, classes, class_names) in enumerate((train, val)):
            chosen = draw_images(len(names), settings.knn_images, seed=settings.seed, which=which)
            paths.append([names[place] for place in chosen])
            labels.append(torch.tensor([number[class_names[int(classes[place])]] for place in chosen]))
            counts.append(f"{len(chosen)} of {len(names)} images")
        every = f"every {settings.knn_every} steps" if settings.knn_every else "once an epoch"
        logger.info(
            "online kNN before the first step and then %s, while training waits: %s against %s (knn_images)",
            every,
            counts[1],
            counts[0],
        )
        return cls(
            backbone,
            world.device,
            size=settings.image_size,
            folders=folders,
            paths=(paths[0], paths[1]),
            labels=(labels[0], labels[1]),
        )

    def __call__(self) -> dict[str, float]:
        """Measure the accuracy on the second folder; about as long as a forward pass over both."""
        began = self._clock()
        train, val = (
            pooled_features(self.backbone, centre_views(root, paths, size=self.size), self.device)
            for root, paths in zip(self.folders, self.paths, strict=True)
        )
        accuracy = knn_accuracy(train, self.labels[0], val, self.labels[1], k=NEIGHBOURS)
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

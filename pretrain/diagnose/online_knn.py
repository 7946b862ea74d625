"""The online kNN: a number that says during training whether the features get better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.distributed import World
from ...models.backbones.base import Backbone
from ...models.knn import centre_views, knn_accuracy, labelled_folder, pooled_features
from ..config.settings import RunSettings

NEIGHBOURS = 20


@dataclass(frozen=True)
class OnlineKnn:
    """Call it between steps; classes of the two folders are matched by name."""

    backbone: Backbone
    device: torch.device
    size: int
    folders: tuple[str, str]
    paths: tuple[list[str], list[str]]
    labels: tuple[Tensor, Tensor]

    @classmethod
    def from_settings(cls, settings: RunSettings, backbone: Backbone, world: World) -> OnlineKnn | None:
        """Read the two folders' lists; None when the run asks for no kNN."""
        if settings.knn_train is None or settings.knn_val is None:
            return None
        train_paths, train_labels, train_names = labelled_folder(settings.knn_train)
        val_paths, val_labels, val_names = labelled_folder(settings.knn_val)
        # a class that only one folder has keeps a number of its own and is never predicted right
        number = {name: position for position, name in enumerate(sorted({*train_names, *val_names}))}
        labels = (
            torch.tensor([number[train_names[label]] for label in train_labels.tolist()]),
            torch.tensor([number[val_names[label]] for label in val_labels.tolist()]),
        )
        folders = (settings.knn_train, settings.knn_val)
        return cls(backbone, world.device, settings.image_size, folders, (train_paths, val_paths), labels)

    def __call__(self) -> dict[str, float]:
        """Measure the accuracy on the second folder; about as long as a forward pass over both."""
        train, val = (
            pooled_features(self.backbone, centre_views(root, paths, size=self.size), self.device)
            for root, paths in zip(self.folders, self.paths, strict=True)
        )
        return {"knn/accuracy": knn_accuracy(train, self.labels[0], val, self.labels[1], k=NEIGHBOURS)}

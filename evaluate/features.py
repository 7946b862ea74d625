"""Features of frozen backbones: computed in shares by several processes, kept for several evaluations.

Shape legend: N images, C channels, S side of the crop in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager

import torch

from ..common.terminal.progress import Advance
from ..data.images.class_folders import LabelledImages
from ..models.backbones.base import Backbone, Vector
from ..models.features import Features, extract_vectors
from .processes import gather_to_first, share, together

BATCH = 64  # images; a share is a stretch of such batches

Vectors = dict[Vector, Features]


class FeatureStore:
    """Vectors that were found, by backbone and images, for as long as the store lives.

    A backbone is known by the bytes of its weights and statistics, so what was found is never taken for that
    of another. Memory: 4 N C bytes for each kind of vector.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._kept: dict[Hashable, Vectors] = {}

    def find(self, key: Hashable, make: Callable[[], Vectors]) -> Vectors:
        """What is kept under a key; made where nothing is."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def frozen_vectors(
    backbone: Backbone,
    images: LabelledImages,
    *,
    image_size: int,
    vectors: Sequence[Vector],
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], AbstractContextManager[Advance]],
    store: FeatureStore | None = None,
) -> Vectors:
    """Vectors of the centre crops, each image read once; with several processes each reads its share.

    Args:
        backbone: in evaluation mode while it is read.
        images: N images.
        image_size: S.
        vectors: which.
        workers, device: how it is computed.
        progress: takes the number of images of this process.
        store: keeps what is found, every kind of vector that the backbone has; None: nothing is kept.

    Returns:
        Features by vector on the first process, in the order of the images; on the others features of none.
    """

    def make(kinds: Sequence[Vector]) -> Vectors:
        mine = images.select(list(share(len(images), BATCH)))
        local: Vectors = {}
        with together(), progress(len(mine)) as advance:
            if len(mine):
                local = extract_vectors(
                    backbone,
                    mine,
                    image_size=image_size,
                    vectors=kinds,
                    batch_size=BATCH,
                    workers=workers,
                    device=device,
                    advance=advance,
                )
        parts = [part for part in gather_to_first(local) if part]
        return {vector: _joined([part[vector] for part in parts]) for vector in kinds}

    if store is None:
        return make(vectors)
    every: tuple[Vector, ...] = ("mean", "class") if "class" in backbone.channels else ("mean",)
    kinds = tuple(sorted({*vectors, *every}))  # one key whichever of them is asked for
    key = (_fingerprint(backbone), images, image_size, kinds)
    return store.find(key, lambda: make(kinds))


def _joined(parts: list[Features]) -> Features:
    """The features of all processes, or of none."""
    if not parts:
        return Features(torch.empty(0, 0), torch.empty(0, dtype=torch.int64))
    if len(parts) == 1:
        return parts[0]
    return Features(torch.cat([part.values for part in parts]), torch.cat([part.labels for part in parts]))


def _fingerprint(backbone: Backbone) -> str:
    """Hash of a backbone's kind, of what it reads of an image, and of its weights and statistics."""
    kind = (type(backbone).__name__, backbone.stem, backbone.stride, backbone.inputs)
    digest = hashlib.sha256(repr(kind).encode())
    for name, value in backbone.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

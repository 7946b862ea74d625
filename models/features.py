"""Features of labelled images: one vector for each centre crop, for kNN, linear probes and the like.

A method names its evaluation vector: the mean over the cells of the last map (for a ViT the mean patch
token), or a ViT's class token.
Shape legend: B and N images, C channels of images and of vectors, S side of the crop in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..common.errors import UserError
from ..common.randomness import counter_generator
from ..data.images.class_folders import LabelledImages
from ..data.images.decode import read_image
from ..data.images.inputs import RGB, Inputs
from ..data.loading.worker_process import prepare_worker, start_workers
from .backbones.base import Backbone, Vector
from .heads import global_average_pool
from .preprocess import as_tensor, centre_crop, default_resize, normalize


@dataclass(frozen=True)
class Features:
    """Vectors of N images, in the order of their list."""

    values: Tensor  # (N, C) float32 on the CPU
    labels: Tensor  # (N,) int64


class CentreCrops(Dataset[tuple[Tensor, int]]):
    """Labelled images as ((C, S, S) uint8 centre crop, class number)."""

    def __init__(self, images: LabelledImages, image_size: int, inputs: Inputs = RGB) -> None:
        """Keep the list; images are read when asked for."""
        self.images, self.image_size, self.inputs = images, image_size, inputs

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read and crop one image."""
        path = self.images.root / self.images.paths[index]
        side = default_resize(self.image_size)
        image = as_tensor(read_image(path, reduce_to=side, reader=self.inputs.reader))
        return centre_crop(image, crop=self.image_size), self.images.labels[index]


def crop_batches(
    images: LabelledImages,
    *,
    image_size: int,
    inputs: Inputs = RGB,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image's centre crop once, in order: (B, C, S, S) uint8 and (B,) int64, the last batch smaller."""
    # a generator of its own: a loader draws a number when it starts, and from torch's it would move training
    loader = DataLoader(
        CentreCrops(images, image_size, inputs),
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),
    )
    for crops, labels in start_workers(loader):
        yield crops.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def evaluation_vector(backbone: Backbone, images: Tensor, vector: Vector = "mean") -> Tensor:
    """One vector an image, (B, C), of normalised images (B, C, S, S).

    Raises:
        UserError: for the class token of a backbone that has none.
    """
    return _vector(backbone(images), backbone.last, vector)


def _vector(maps: Mapping[str, Tensor], last: str, vector: Vector) -> Tensor:
    """One vector an image, (B, C), of a backbone's maps."""
    if vector == "mean":
        return global_average_pool(maps[last])
    if "class" not in maps:
        raise UserError("this backbone has no class token; only ViTs have: leave --set vector=class out")
    return maps["class"]


def spread_crops(
    images: LabelledImages,
    *,
    image_size: int,
    inputs: Inputs = RGB,
    seed: int,
    limit: int,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Normalised centre crops of images drawn by the seed, for BatchNorm's statistics: (B, C, S, S).

    Drawn, for class folders are sorted, and a batch of one class has other statistics than the set. A last
    batch of a single image is left out, for it has no variance of its own.
    """
    order = counter_generator(seed, 0, 0, 0, "batchnorm").permutation(len(images))[:limit]
    chosen = images.select([int(index) for index in order])
    for crops, _ in crop_batches(
        chosen, image_size=image_size, inputs=inputs, workers=workers, device=device
    ):
        if len(crops) > 1 or len(chosen) == 1:
            yield normalize(crops, inputs)


def extract_features(
    backbone: Backbone,
    images: LabelledImages,
    *,
    image_size: int,
    vector: Vector = "mean",
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> Features:
    """One kind of vector of the centre crops; see `extract_vectors`."""
    return extract_vectors(
        backbone,
        images,
        image_size=image_size,
        vectors=(vector,),
        batch_size=batch_size,
        workers=workers,
        device=device,
        advance=advance,
    )[vector]


@torch.no_grad()
def extract_vectors(
    backbone: Backbone,
    images: LabelledImages,
    *,
    image_size: int,
    vectors: Sequence[Vector],
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> dict[Vector, Features]:
    """Vectors of the centre crops, each kind of them, backbone in evaluation mode; its mode is put back.

    Args:
        backbone: moved to `device`.
        images: N images, at least one; each is read once.
        image_size: S.
        vectors: which vectors of the maps.
        batch_size, workers, device: how it is computed; the result does not depend on them beyond rounding.
        advance: called with the number of images of each batch that is done.
    """
    was_training = backbone.training
    backbone.to(device).eval()
    inputs = backbone.inputs
    values: dict[Vector, list[Tensor]] = {vector: [] for vector in vectors}
    labels = []
    try:
        for crops, numbers in crop_batches(
            images,
            image_size=image_size,
            inputs=inputs,
            batch_size=batch_size,
            workers=workers,
            device=device,
        ):
            maps = backbone(normalize(crops, inputs))
            for vector, found in values.items():
                found.append(_vector(maps, backbone.last, vector).float().cpu())
            labels.append(numbers.cpu())
            if advance is not None:
                advance(len(crops))
    finally:
        backbone.train(was_training)
    joined = torch.cat(labels)
    return {vector: Features(torch.cat(found), joined) for vector, found in values.items()}

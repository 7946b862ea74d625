"""k nearest neighbours on frozen features: the trainer's online check and evaluation's kNN row.

Protocol of InstDisc (Wu et al., CVPR 2018) as DINO uses it: cosine similarity, votes weighted by
exp(similarity / 0.07). Shape legend: N training rows, Q queries, D feature dimensions, K classes, k
neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..common.errors import UserError
from ..data.images.decode import read_image
from ..data.images.folder import find_images
from .backbones.base import Backbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def knn_scores(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 4096,
) -> Tensor:
    """Score classes by the weighted vote of the k most similar training rows.

    Args:
        features: (N, D) of the training images; normalised here.
        labels: (N,) int64 in 0 .. classes - 1.
        queries: (Q, D).
        classes: K.
        k: neighbours, cut to N.
        temperature: of the votes' weights.
        chunk: queries compared at once, which bounds memory.

    Returns:
        (Q, K) float32 votes; argmax is the prediction.

    Raises:
        ValueError: if rows and labels differ in number or there is no training row.
    """
    if len(features) != len(labels) or len(features) == 0:
        raise ValueError(
            f"{len(features)} training rows with {len(labels)} labels: give one each, at least one"
        )
    features = functional.normalize(features.float(), dim=1)
    labels = labels.to(features.device)
    votes = []
    for part in torch.split(queries, chunk):
        similarity = functional.normalize(part.float().to(features.device), dim=1) @ features.T
        nearest, rows = similarity.topk(min(k, len(features)), dim=1)
        empty = torch.zeros(len(part), classes, device=features.device)
        votes.append(empty.scatter_add_(1, labels[rows], (nearest / temperature).exp()))
    return torch.cat(votes)


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of queries whose class the vote finds, in [0, 1]; arguments as for `knn_scores`."""
    classes = int(torch.cat([labels.cpu(), query_labels.cpu()]).max()) + 1
    scores = knn_scores(features, labels, queries, classes=classes, k=k, temperature=temperature)
    return float((scores.argmax(1).cpu() == query_labels.cpu()).float().mean())


def labelled_folder(root: str | Path) -> tuple[list[str], Tensor, list[str]]:
    """Read a folder of class folders.

    Args:
        root: folder whose first level names the classes; images at any depth below.

    Returns:
        Image paths relative to root, (N,) int64 labels, and the class names in sorted order.

    Raises:
        UserError: if there is no image in a class folder.
    """
    paths = [path for path in find_images(root) if "/" in path]
    if not paths:
        raise UserError(f"{root} holds no class folders with images; expected {root}/<class>/<image>.jpg")
    names = sorted({path.split("/")[0] for path in paths})
    number = {name: position for position, name in enumerate(names)}
    return paths, torch.tensor([number[path.split("/")[0]] for path in paths]), names


def centre_view(pixels: np.ndarray, size: int) -> Tensor:
    """Resize the short side to size / 0.875 (antialiased), crop the centre, normalise.

    The evaluation transform of torchvision's ImageNet references.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        size: side of the result, pixels.

    Returns:
        (3, size, size) float32.
    """
    from torchvision.transforms.v2 import functional as transforms

    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    image = transforms.resize(image, [round(size / 0.875)], antialias=True)
    values = transforms.center_crop(image, [size, size]).float() / 255
    view: Tensor = transforms.normalize(values, list(IMAGENET_MEAN), list(IMAGENET_STD))
    return view


def centre_views(
    root: str | Path, paths: Iterable[str], *, size: int, batch_size: int = 64
) -> Iterator[Tensor]:
    """Read images in batches of centre views, (b, 3, size, size) float32 on the CPU."""
    batch: list[Tensor] = []
    for path in paths:
        batch.append(centre_view(read_image(Path(root) / path), size))
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)


@torch.no_grad()
def pooled_features(backbone: Backbone, batches: Iterable[Tensor], device: torch.device) -> Tensor:
    """Average the backbone's last map over its cells.

    Args:
        backbone: used in evaluation mode; its mode is put back.
        batches: (b, 3, H, W) normalised images.
        device: where the backbone is.

    Returns:
        (N, C) float32 on the CPU.
    """
    was_training = backbone.training
    backbone.eval()
    try:
        rows = [backbone(batch.to(device))[backbone.last].mean((2, 3)).float().cpu() for batch in batches]
    finally:
        backbone.train(was_training)
    return torch.cat(rows)

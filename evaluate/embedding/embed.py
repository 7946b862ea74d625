"""`hapicl embed`: one vector or one map for every image, in parts, so that an interrupted run goes on.

Shape legend: N images, B of a batch, C channels, S map cells per side.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ... import __version__
from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.config import Settings, build
from ...common.errors import UserError
from ...data.build_folder import BuildFolder, paths_digest
from ...data.images import open_images
from ...data.images.store import ImageStore
from ...models.backbones.base import Backbone, Vector
from ...models.features import evaluation_vector
from ...models.preprocess import default_resize, normalize
from ...models.weights import RANDOM, WeightsInfo, describe_weights, load_backbone
from ...pretrain.config.settings import ImageSize
from ..classification.vectors import FeatureProtocol, evaluation_vectors
from .crops import CropBatch, crop_batches
from .files import Values, check_kind, read_features, write_features

PART_IMAGES = 256
Progress = Callable[[int, int, int], None]  # images done, images in all, of them unreadable


class EmbedSettings(Settings):
    """What is taken of an image, and how it is shown to the backbone.

    Attributes:
        maps: the last map instead of one vector.
        vector: `mean` over the cells of the last map, `class` (a ViT's token), or `auto`: what the method of
            the weights names for its evaluation.
        image_size: side of the centre crop, pixels; None takes that of training, else 224.
        batch_size: images at once; the last bits of a number may depend on it.
        arch, stem: of the backbone, where the weights do not say.
    """

    maps: bool = False
    vector: Literal["auto", "mean", "class"] = "auto"
    image_size: ImageSize | None = None
    batch_size: int = Field(default=64, ge=1, le=65_536)
    arch: str | None = None
    stem: str | None = None


@dataclass(frozen=True)
class EmbedSummary:
    """What a call did.

    Attributes:
        path: the file.
        images: how many are in it.
        shape: of one image's features, (C,) or (C, S, S).
        unreadable: path -> reason of images that have none.
        line: what matched of the weights.
        already_finished: nothing had to be done.
    """

    path: Path
    images: int
    shape: tuple[int, ...]
    unreadable: dict[str, str]
    line: str
    already_finished: bool = False


def embed(
    weights: str,
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: EmbedSettings | None = None,
    *,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> EmbedSummary:
    """Write the features of every image of a folder or pack.

    Run again after an interruption, it takes up the finished parts and writes the same bytes as one sitting.

    Args:
        weights: as `load_backbone` takes them, not random.
        images: as `open_images` takes them: a folder, archives, a URL, or a file of `hapicl data pack`.
        out: the file, `.npz` or `.parquet`.
        settings: see `EmbedSettings`.
        workers: processes that read images.
        device: where the backbone runs.
        progress: called after each part, and once at the start with what is done already.

    Raises:
        UserError: for weights, images or a place that do not serve, or a file of other features at `out`.

    Examples:
        >>> summary = embed("resnet18.pth", "photos", "features.npz", EmbedSettings(image_size=64))
        >>> summary.images, summary.shape
        (8, (512,))
    """
    settings, target = settings or EmbedSettings(), Path(out)
    check_kind(target)
    refuse_unwritable(target)
    if weights in RANDOM:
        raise UserError(f"embed wants trained weights, not `{weights}`")
    store = open_images(images)
    paths = store.paths()
    if not paths:
        raise UserError(f"no images in {images}; give a folder that holds images, at any depth")
    size = settings.image_size or int(describe_weights(weights).get("image_size", 224))
    backbone, info = load_backbone(weights, arch=settings.arch, image_size=size, stem=settings.stem)
    extract = _Extract(backbone.eval(), _vector(settings, info, backbone), torch.device(device))
    plan = _plan(extract, info, settings.batch_size, size, store.location, paths)
    if target.exists():
        return _finished(target, plan, info.line())
    folder = BuildFolder(target)
    with folder.locked():
        if target.exists():  # finished by another process since it was looked at
            return _finished(target, plan, info.line())
        folder.go_on(plan, lambda begun: _different(begun, plan), "unfinished features of")
        backbone.to(device)
        _make_parts(folder, store, paths, extract, size, settings.batch_size, workers, progress)
        shape, unreadable, count = _join(folder, target, paths, plan)
        folder.remove()
    return EmbedSummary(target, count, shape, unreadable, info.line())


@dataclass(frozen=True)
class _Extract:
    """Crops to features."""

    backbone: Backbone
    vector: Vector | None  # None: the last map
    device: torch.device

    @torch.inference_mode()
    def __call__(self, crops: Tensor) -> Values:
        """(B, channels, H, W) uint8 to (B, C) or (B, C, S, S)."""
        images = normalize(crops.to(self.device), self.backbone.inputs)
        if self.vector is None:
            values = self.backbone(images)[self.backbone.last]
        else:
            values = evaluation_vector(self.backbone, images, self.vector)
        return np.asarray(values.float().cpu().numpy(), np.float32)


def _vector(settings: EmbedSettings, info: WeightsInfo, backbone: Backbone) -> Vector | None:
    """Which vector is wanted; None for the last map."""
    if settings.maps:
        return None
    return evaluation_vectors(build(FeatureProtocol, {"vector": settings.vector}), info, backbone)[0]


def _plan(
    extract: _Extract, info: WeightsInfo, batch_size: int, size: int, images: str, paths: Sequence[str]
) -> dict[str, Any]:
    """What the features are of: recorded in the file, and what a run that goes on must agree with."""
    return {
        "weights": {name: getattr(info, name) for name in ("spec", "sha256", "arch", "stem", "method")},
        "gives": extract.vector or "map",
        "image_size": size,
        "resize": default_resize(size),
        "inputs": extract.backbone.inputs.as_texts(),
        "batch_size": batch_size,
        "images": images,
        "paths_digest": paths_digest(paths),
        "device": extract.device.type,
        "versions": {"hapicl": __version__, "torch": str(torch.__version__)},
    }


def _finished(target: Path, plan: dict[str, Any], line: str) -> EmbedSummary:
    """Say that the file is there, or refuse another one."""
    found = read_features(target)
    if different := _different(found.about, plan):
        raise UserError(f"{target} holds features of {different}; choose another --out")
    shape = tuple(found.about["shape"])
    return EmbedSummary(target, len(found.paths), shape, found.about["unreadable"], line, True)


def _different(made: dict[str, Any], plan: dict[str, Any]) -> str:
    """What sets features apart from those that are asked for, in words; empty if nothing does."""
    words = {
        "gives": "another kind (--maps, --vector)",
        "image_size": "another --image-size",
        "batch_size": "another --batch-size",
        "paths_digest": "other images (their names or number)",
        "device": "another kind of device",
        "versions": "another version of hapicl or torch",
    }
    found = [text for name, text in words.items() if made.get(name) != plan[name]]
    before, now = made.get("weights", {}), plan["weights"]
    if any(before.get(name) != now[name] for name in ("sha256", "arch", "stem")):
        found.insert(0, "other weights")
    return ", ".join(found)


def _make_parts(
    folder: BuildFolder,
    store: ImageStore,
    paths: Sequence[str],
    extract: _Extract,
    image_size: int,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> None:
    """Make the parts that are not there yet, in order; batches never reach over a part's end."""
    done = folder.finished()
    failures = sum(len(_unreadable_of(folder.part_path(number))) for number in done)
    images_done = sum(len(_rows_of(number, len(paths))) for number in done)
    if progress is not None:
        progress(images_done, len(paths), failures)
    todo = sorted(set(range(-(-len(paths) // PART_IMAGES))) - set(done))
    planned = [(number, rows) for number in todo for rows in _batches(number, len(paths), batch_size)]
    read = crop_batches(
        store,
        paths,
        [rows for _, rows in planned],
        image_size=image_size,
        inputs=extract.backbone.inputs,
        workers=workers,
    )
    numbered = zip((number for number, _ in planned), read, strict=True)
    for number, group in itertools.groupby(numbered, key=lambda pair: pair[0]):
        failures += _write_part(folder.part_path(number), (batch for _, batch in group), extract, paths)
        images_done += len(_rows_of(number, len(paths)))
        if progress is not None:
            progress(images_done, len(paths), failures)


def _rows_of(number: int, count: int) -> range:
    """The rows of a part."""
    return range(number * PART_IMAGES, min(count, (number + 1) * PART_IMAGES))


def _batches(number: int, count: int, size: int) -> list[list[int]]:
    """The rows of a part in batches."""
    rows = _rows_of(number, count)
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _write_part(path: Path, batches: Iterator[CropBatch], extract: _Extract, paths: Sequence[str]) -> int:
    """Compute and write one part; how many of its images could not be read."""
    rows: list[int] = []
    values: list[Values] = []
    unreadable: dict[str, str] = {}
    for batch in batches:
        if batch.rows:
            rows += batch.rows
            values.append(extract(batch.crops))
        unreadable |= {paths[row]: reason for row, reason in batch.unreadable.items()}
    with atomic_write(path) as part, h5py.File(part, "w") as file:
        file["rows"] = np.asarray(rows, np.int64)
        if values:
            file["values"] = np.concatenate(values)
        file.attrs["unreadable"] = json.dumps(unreadable)
    return len(unreadable)


def _unreadable_of(path: Path) -> dict[str, str]:
    """What a part says of images without features."""
    with h5py.File(path, "r") as file:
        found: dict[str, str] = json.loads(str(file.attrs["unreadable"]))
    return found


def _join(
    folder: BuildFolder, target: Path, paths: Sequence[str], plan: dict[str, Any]
) -> tuple[tuple[int, ...], dict[str, str], int]:
    """Join all parts into the file; shape of one image's features, unreadable images, readable ones."""
    rows: list[int] = []
    unreadable: dict[str, str] = {}
    shape: tuple[int, ...] = ()
    parts = [folder.part_path(number) for number in folder.finished()]
    for path in parts:
        with h5py.File(path, "r") as file:
            rows += file["rows"][:].tolist()
            unreadable |= json.loads(str(file.attrs["unreadable"]))
            shape = tuple(file["values"].shape[1:]) if "values" in file else shape
    if not rows:
        first, reason = next(iter(unreadable.items()))
        raise UserError(f"none of the images in {plan['images']} can be read; the first: {first}: {reason}")
    about = {**plan, "unreadable": unreadable}
    write_features(target, [paths[row] for row in rows], shape, _chunks(parts), about)
    return shape, unreadable, len(rows)


def _chunks(parts: Sequence[Path]) -> Iterator[Values]:
    """The features of each part that has any."""
    for path in parts:
        with h5py.File(path, "r") as file:
            if "values" in file:
                yield file["values"][:]

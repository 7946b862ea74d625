"""Images with label PNGs: two folders with the same names, or the Pascal VOC layout.

Shape legend: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..data.errors import UserError
from ..data.images import find_images, read_image
from ..data.randomness import counter_generator
from .transforms import as_tensor

IGNORE = 255  # label of pixels that neither train nor count, inside this package
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True, kw_only=True)
class LabelledPixels:
    """N images with label images of the same size.

    `void` is the files' label of pixels that do not count (besides 255), `binary` makes every label above 0
    class 1.
    """

    name: str
    images: tuple[Path, ...]  # N
    labels: tuple[Path, ...]  # N
    classes: int = 0
    void: int = IGNORE
    binary: bool = False

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def record(self) -> dict[str, object]:
        """JSON-able description."""
        return {"name": self.name, "images": len(self), "classes": self.classes, "void": self.void}

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """(3, H, W) uint8 image and (H, W) uint8 labels, 255 where they do not count."""
        image = as_tensor(read_image(self.images[index]))
        labels = self.read_labels(index)
        if labels.shape != image.shape[1:]:
            raise UserError(
                f"{self.labels[index]} is {tuple(labels.shape)} pixels, its image "
                f"{tuple(image.shape[1:])}; labels must have the size of their image"
            )
        return image, labels

    def read_labels(self, index: int) -> Tensor:
        """(H, W) uint8 labels, 255 where they do not count."""
        values = _label_pixels(self.labels[index])
        if self.binary:
            return torch.from_numpy((values > 0).astype(np.uint8))
        labels = np.where(values == self.void, IGNORE, values)
        if self.classes and (wrong := np.setdiff1d(labels, [*range(self.classes), IGNORE])).size:
            raise UserError(
                f"{self.labels[index]} holds label {wrong[0]}, but there are {self.classes} classes; "
                "give --classes or name the void label with --void"
            )
        return torch.from_numpy(labels.astype(np.uint8))


def _label_pixels(path: Path) -> np.ndarray:
    """Class numbers as stored: palette indices, grey values or bits."""
    try:
        with Image.open(path) as opened:
            if opened.mode not in {"1", "L", "P", "I", "I;16"}:
                raise UserError(
                    f"{path} is a {opened.mode} picture; label files hold one class number per pixel "
                    "(grey or palette PNG)"
                )
            return np.asarray(opened).astype(np.int64)
    except FileNotFoundError as error:
        raise UserError(f"no label file {path}; every image needs one of the same name") from error
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"cannot read the labels {path}: {error}") from error


def paired_folders(images: Path, labels: Path, *, void: int = IGNORE, binary: bool = False) -> LabelledPixels:
    """Pair `images/<name>.jpg` with `labels/<name>.png`.

    Raises:
        UserError: if a folder is missing or empty, or an image has no label file.
    """
    if not labels.is_dir():
        raise UserError(f"no label folder {labels}; give the folder with the label PNGs")
    found = find_images(images)
    if not found:
        raise UserError(f"no images under {images}")
    files = {
        path.relative_to(labels).with_suffix("").as_posix(): path
        for path in sorted(labels.rglob("*"))
        if path.suffix.lower() in LABEL_SUFFIXES
    }
    pairs = []
    for path in found:
        stem = Path(path).with_suffix("").as_posix()
        if stem not in files:
            raise UserError(
                f"{images / path} has no label file {labels / stem}.png; add it or move the image"
            )
        pairs.append((images / path, files[stem]))
    return LabelledPixels(
        name=images.parent.name or str(images),
        images=tuple(image for image, _ in pairs),
        labels=tuple(label for _, label in pairs),
        void=void,
        binary=binary,
    )


def voc_split(root: Path, split: str, *, void: int = IGNORE) -> LabelledPixels:
    """A split of the VOC layout: ImageSets/Segmentation/<split>.txt, JPEGImages, SegmentationClass."""
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listed.is_file():
        raise UserError(f"no {listed}; --voc wants the Pascal VOC layout (VOCdevkit/VOC2012)")
    names = listed.read_text().split()
    images = tuple(root / "JPEGImages" / f"{name}.jpg" for name in names)
    labels = tuple(root / "SegmentationClass" / f"{name}.png" for name in names)
    for path in (*images, *labels):
        if not path.is_file():
            raise UserError(f"{listed} names {path.stem}, but there is no {path}")
    if not images:
        raise UserError(f"{listed} names no image")
    return LabelledPixels(name=f"{root.name}/{split}", images=images, labels=labels, void=void)


def hold_out(data: LabelledPixels, share: float, seed: int = 0) -> tuple[LabelledPixels, LabelledPixels]:
    """Split into training and test images; the split depends on `seed` and the number of images alone."""
    count = round(share * len(data))
    if not 0 < count < len(data):
        raise UserError(f"holding out {share:.0%} of {len(data)} images leaves one side empty")
    order = counter_generator(seed, 0, 0, 0, "hold_out").permutation(len(data))
    held = {int(index) for index in order[:count]}

    def part(indices: Sequence[int]) -> LabelledPixels:
        images = tuple(data.images[index] for index in indices)
        return replace(data, images=images, labels=tuple(data.labels[index] for index in indices))

    everything = range(len(data))
    return (
        part([index for index in everything if index not in held]),
        part([index for index in everything if index in held]),
    )


def with_classes(
    train: LabelledPixels, test: LabelledPixels, classes: int | None
) -> tuple[LabelledPixels, LabelledPixels]:
    """Set the number of classes of both; None reads it off the training and test labels.

    Raises:
        UserError: if the labels hold fewer than two classes.
    """
    if classes is None:
        highest = 0
        for data in (train, test):
            for index in range(len(data)):
                labels = data.read_labels(index)
                counted = labels[labels != IGNORE]
                highest = max(highest, int(counted.max()) if len(counted) else 0)
        classes = highest + 1
    if not 2 <= classes <= IGNORE:
        raise UserError(
            f"{train.name}: labels hold {classes} class(es); segmentation needs 2 to 255 "
            "(masks of 0 and 255: add --binary)"
        )
    return replace(train, classes=classes), replace(test, classes=classes)

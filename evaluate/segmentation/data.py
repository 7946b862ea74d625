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

from ...common.errors import UserError
from ...common.randomness import counter_generator
from ...common.terminal.progress import Advance, Progress, no_progress
from ...data.images.class_folders import read_lines
from ...data.images.decode import image_size, read_image
from ...data.images.folder import find_images
from ...models.preprocess import as_tensor
from ..identity import files_hash

IGNORE = 255  # label of pixels that neither train nor count, inside this package
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True, kw_only=True)
class LabelledPixels:
    """N images with label images of the same size.

    `void` is the files' label of pixels that do not count (besides 255), `binary` makes every label above 0
    class 1, `root` and `labels_root` say where they lie, `class_names` what the classes are called (their
    numbers where it is empty).
    """

    name: str
    root: Path
    labels_root: Path
    images: tuple[Path, ...]  # N
    labels: tuple[Path, ...]  # N
    classes: int = 0
    void: int = IGNORE
    binary: bool = False
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def record(self) -> dict[str, object]:
        """JSON-able description."""
        return {
            "name": self.name,
            "root": str(self.root),
            "labels_root": str(self.labels_root),
            "images": len(self),
            "classes": self.classes,
            "class_names": list(self.names),
            "void": self.void,
            "binary": self.binary,
            "files": files_hash([*self.images, *self.labels], [0] * 2 * len(self)),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return self.class_names or tuple(map(str, range(self.classes)))

    def take(self, indices: Sequence[int]) -> LabelledPixels:
        """The images at `indices`, which may name one more than once."""
        images = tuple(self.images[index] for index in indices)
        return replace(self, images=images, labels=tuple(self.labels[index] for index in indices))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """(3, H, W) uint8 image and (H, W) uint8 labels, 255 where they do not count."""
        image = as_tensor(read_image(self.images[index]))
        labels = self.read_labels(index)
        self.check_size(index, labels, tuple(image.shape[1:]))
        return image, labels

    def check_size(self, index: int, labels: Tensor, size: tuple[int, ...]) -> None:
        """Refuse labels of another (height, width) than their image's."""
        if tuple(labels.shape) != size:
            raise UserError(
                f"{self.labels[index]} is {tuple(labels.shape)} pixels, its image {size}; labels must have "
                "the size of their image"
            )

    def read_labels(self, index: int) -> Tensor:
        """(H, W) uint8 labels, 255 where they do not count."""
        values = _label_pixels(self.labels[index])
        if self.binary:
            return torch.from_numpy((values > 0).astype(np.uint8))
        labels = np.where(values == self.void, IGNORE, values)
        wrong = ((labels < 0) | (labels >= self.classes)) & (labels != IGNORE)
        if self.classes and wrong.any():
            least = labels[wrong].min()
            raise UserError(
                f"{self.labels[index]} holds label {least}, but there are {self.classes} classes; "
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
        raise UserError(f"cannot read the labels {path}: {error}; save them again as PNG") from error


def paired_folders(images: Path, labels: Path, *, void: int = IGNORE, binary: bool = False) -> LabelledPixels:
    """Pair `images/<name>.jpg` with `labels/<name>.png`.

    Raises:
        UserError: if a folder is missing or empty, or an image has no label file.
    """
    if not labels.is_dir():
        raise UserError(f"no label folder {labels}; give the folder with the label PNGs")
    found = find_images(images)
    if not found:
        raise UserError(f"no images under {images}; give the folder with the images")
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
        root=images,
        labels_root=labels,
        images=tuple(image for image, _ in pairs),
        labels=tuple(label for _, label in pairs),
        void=void,
        binary=binary,
    )


def voc_split(root: Path, split: str, *, void: int = IGNORE) -> LabelledPixels:
    """A split of the VOC layout: ImageSets/Segmentation/<split>.txt, JPEGImages, SegmentationClass."""
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    names = voc_list(root, split)
    images = tuple(root / "JPEGImages" / f"{name}.jpg" for name in names)
    labels = tuple(root / "SegmentationClass" / f"{name}.png" for name in names)
    for path in (*images, *labels):
        if not path.is_file():
            raise UserError(f"{listed} names {path.stem}, but there is no {path}")
    if not images:
        raise UserError(f"{listed} names no image")
    return LabelledPixels(
        name=f"{root.name}/{split}",
        root=root / "JPEGImages",
        labels_root=root / "SegmentationClass",
        images=images,
        labels=labels,
        void=void,
    )


def voc_list(root: Path, split: str) -> list[str]:
    """Names of the images in a split of the VOC layout."""
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    return read_lines(listed, "--voc the Pascal VOC layout (VOCdevkit/VOC2012) with that split")


def held_out(number: int, fraction: float, seed: int = 0) -> list[int]:
    """Indices of a share of `number` images, drawn by `seed`.

    Raises:
        UserError: if the share leaves one side empty.
    """
    if not 0 < fraction < 1 or not 0 < round(fraction * number) < number:
        raise UserError(
            f"--holdout {fraction:g} of {number} images leaves one side empty; give a share between 0 and 1"
        )
    order = counter_generator(seed, 0, 0, 0, "hold_out").permutation(number)
    return sorted(int(index) for index in order[: round(fraction * number)])


def hold_out(data: LabelledPixels, fraction: float, seed: int = 0) -> tuple[LabelledPixels, LabelledPixels]:
    """Split into training and test images; the split depends on `seed` and the number of images alone."""
    held = held_out(len(data), fraction, seed)
    return data.take(sorted(set(range(len(data))) - set(held))), data.take(held)


def with_classes(
    train: LabelledPixels,
    test: LabelledPixels,
    classes: int | None,
    *,
    progress: Progress = no_progress,
) -> tuple[LabelledPixels, LabelledPixels]:
    """Set the number of classes of both; None reads it off the training and test labels.

    Every label file is read, so that a mistake in the last test image shows before the training.

    Raises:
        UserError: if the labels hold fewer than two classes or no pixel that counts, or a file is broken, of
            another size than its image, or holds a label that is no class.
    """
    if classes is not None:
        train, test = replace(train, classes=classes), replace(test, classes=classes)
    with progress("labels read and checked", len(train) + len(test)) as advance:
        highest = max(_highest_label(train, advance), _highest_label(test, advance))
    classes = highest + 1 if classes is None else classes
    if not 2 <= classes <= IGNORE:
        raise UserError(
            f"{train.name}: labels hold {classes} class(es); segmentation needs 2 to 255 "
            "(masks of 0 and 255: add --binary)"
        )
    return replace(train, classes=classes), replace(test, classes=classes)


def _highest_label(data: LabelledPixels, advance: Advance) -> int:
    """The largest class number in the label files, which are checked against their images' sizes."""
    highest = -1
    for index in range(len(data)):
        labels = data.read_labels(index)
        data.check_size(index, labels, image_size(data.images[index]))
        counted = labels[labels != IGNORE]
        highest = max(highest, int(counted.max()) if len(counted) else -1)
        advance(1)
    if highest < 0:
        raise UserError(
            f"{data.name}: every pixel of the {len(data)} label files is void ({data.void} or {IGNORE}); "
            "name another label with --void"
        )
    return highest

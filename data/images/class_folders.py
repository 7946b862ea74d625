"""Labelled image folders for classification: one folder per class, as in torchvision's ImageFolder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...common.errors import UserError
from ...common.randomness import counter_generator
from .folder import find_images


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """N images of one folder with their class numbers."""

    root: Path
    paths: tuple[str, ...]  # N, relative to root, sorted
    labels: tuple[int, ...]  # N
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return N."""
        return len(self.paths)

    def record(self) -> dict[str, object]:
        """JSON-able description."""
        return {"root": str(self.root), "images": len(self), "classes": len(self.classes)}

    def select(self, indices: list[int]) -> LabelledImages:
        """The images at `indices`, the classes unchanged."""
        return LabelledImages(
            root=self.root,
            paths=tuple(self.paths[index] for index in indices),
            labels=tuple(self.labels[index] for index in indices),
            classes=self.classes,
        )


def class_folders(root: Path, classes: tuple[str, ...] | None = None) -> LabelledImages:
    """Index `root/<class>/**/image`.

    Args:
        root: the folder; every image lies in a class folder.
        classes: the class names of the training set; None takes the folder names, sorted.

    Raises:
        UserError: if there is no image, an image lies outside the class folders, fewer than two classes are
            there, or a class folder is none of `classes`.
    """
    paths = find_images(root)
    if not paths:
        raise UserError(f"no images under {root}; give a folder with one folder of images per class")
    loose = [path for path in paths if "/" not in path]
    if loose:
        raise UserError(f"{root / loose[0]} lies in no class folder; move it into {root}/<class>/")
    names = [path.split("/", 1)[0] for path in paths]
    if classes is None:
        classes = tuple(sorted(set(names)))
        if len(classes) < 2:
            raise UserError(f"{root} has one class folder ({classes[0]}); classification needs at least two")
    number = {name: index for index, name in enumerate(classes)}
    strange = sorted(set(names) - set(classes))
    if strange:
        raise UserError(f"{root / strange[0]} is no class of the training folder; rename or remove it")
    return LabelledImages(
        root=root, paths=tuple(paths), labels=tuple(number[name] for name in names), classes=classes
    )


def read_lines(path: Path, wanted: str) -> list[str]:
    """Lines of a text file in UTF-8, without those that are blank.

    Args:
        path: the file.
        wanted: what it should be, for the error.

    Raises:
        UserError: if it is missing, a folder, or no text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give {wanted}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; give {wanted}") from error


def listed(images: LabelledImages, list_file: Path) -> LabelledImages:
    """The images that a text file names, one path or file name per line (the 1 % and 10 % lists).

    Raises:
        UserError: if the file is missing or empty, or names an image that the folder lacks or holds twice.
    """
    position = {path: index for index, path in enumerate(images.paths)}
    repeated = Counter(Path(path).name for path in images.paths)
    by_name = {
        Path(path).name: index for index, path in enumerate(images.paths) if repeated[Path(path).name] == 1
    }
    chosen = []
    for name in read_lines(list_file, "a text file with one image path per line"):
        index = position.get(name, by_name.get(name))
        if index is None:
            raise UserError(f"{list_file}: {name!r} is no single image under {images.root}; mend the list")
        chosen.append(index)
    if not chosen:
        raise UserError(f"{list_file} names no image")
    return images.select(sorted(set(chosen)))


def fraction_per_class(images: LabelledImages, fraction: float, seed: int) -> LabelledImages:
    """A share of each class, at least one image each, drawn by `seed`: for when there is no list file."""
    if not 0 < fraction < 1:
        raise UserError(f"a share of the training images lies between 0 and 1, not {fraction}")
    labels = np.asarray(images.labels)
    chosen: list[int] = []
    for label in range(len(images.classes)):
        members = np.flatnonzero(labels == label)
        if len(members):
            order = counter_generator(seed, 0, label, 0, "share").permutation(members)
            chosen += [int(index) for index in order[: max(1, round(fraction * len(members)))]]
    return images.select(sorted(chosen))

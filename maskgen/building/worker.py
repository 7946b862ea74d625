"""What a worker process does: make rows of the mask file from images. Never imports torch."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
from threadpoolctl import threadpool_limits

from ...common.errors import UserError
from ...common.types import Pixels
from ...data.images.decode import ImageError, decode_image, read_bytes, read_header
from ...data.masks.writer import MaskRow, pack_mask
from ..pipeline import Foreground, segment
from ..recipes import MaskRecipe
from .plan import Task

# the file is there but this user, or anyone, may not read it; anything else means that the folder went away
_OWN_FAULT = frozenset((errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG))


class RowMaker(Protocol):
    """A way to make a row; travels to the workers by pickle."""

    def as_dict(self) -> dict[str, Any]:
        """Return every parameter, ready for JSON; the mask file records it as its recipe."""

    def row(self, root: str, path: str) -> MaskRow:
        """Make the row of one image, `path` relative to `root`; see `segmented_row`."""


class TaskResult(NamedTuple):
    """The rows of one task and the seconds a worker spent on it."""

    task: Task
    rows: list[MaskRow]
    seconds: float


@functools.cache
def use_one_thread() -> None:
    """Keep this process to one core: the parallel work is one process per core."""
    cv2.setNumThreads(1)
    threadpool_limits(1)


def make_rows(root: str, task: Task, maker: RowMaker) -> TaskResult:
    """Make the rows of some images, on one thread.

    Args:
        root: the image folder.
        task: the images, relative to it.
        maker: how.

    Raises:
        UserError: if an image that was listed is gone.
    """
    use_one_thread()
    start = time.perf_counter()
    rows = [maker.row(root, path) for path in task.paths]
    return TaskResult(task, rows, time.perf_counter() - start)


def segmented_row(root: str, path: str, recipe: MaskRecipe, find: Callable[[Pixels], Foreground]) -> MaskRow:
    """Make one image's row; an image that cannot be used becomes a row that says why.

    Args:
        root: the image folder.
        path: the image, relative to it.
        recipe: gives the working size and what counts as a low confidence.
        find: finds the foreground of a decoded image.

    Raises:
        UserError: if the image was listed but is gone, as after the loss of a network folder.
    """
    try:
        data = read_listed(root, path)
        header = read_header(data, path)
        image = decode_image(data, path, reduce_to=recipe.work_size, header=header)
    except ImageError as error:
        return MaskRow(path=path, reason=error.reason, file_bytes=file_bytes(f"{root}/{path}"))
    found = find(image)
    return pack_mask(
        path,
        found.mask,
        header.size,
        confidence=found.confidence,
        low_confidence=recipe.low_confidence,
        file_bytes=len(data),
    )


@dataclass(frozen=True)
class RecipeRows:
    """Makes rows by finding each image's foreground."""

    recipe: MaskRecipe

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe's parameters."""
        return self.recipe.as_dict()

    def row(self, root: str, path: str) -> MaskRow:
        """Make one image's row; see `segmented_row`."""
        return segmented_row(root, path, self.recipe, lambda image: segment(image, self.recipe))


def read_listed(root: str, path: str) -> bytes:
    """Read an image file that was listed before.

    Raises:
        ImageError: if this one file cannot be read.
        UserError: if it is gone.
    """
    file = Path(root, path)
    try:
        return read_bytes(file)
    except OSError as error:
        broken_link = file.is_symlink() and Path(root).is_dir()
        if error.errno in _OWN_FAULT or broken_link:
            what = "a folder that cannot be read" if file.is_dir() else "cannot be read"
            raise ImageError(path, f"{what}: {error.strerror}") from error
        raise UserError(f"{file} was listed but cannot be read any more ({error.strerror})") from error


def file_bytes(path: str) -> int:
    """Size of a file, 0 where it cannot be asked: a broken link, a folder without permission on the way."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 (a Path for each of a million files is slow)
    except OSError:
        return 0

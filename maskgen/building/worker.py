"""What a worker process does: make rows of the mask file from images. Never imports torch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
from threadpoolctl import threadpool_limits

from ...common.types import Pixels
from ...data.images.decode import ImageError, decode_image, read_header
from ...data.images.store import OriginalImages
from ...data.masks.writer import MaskRow, pack_mask
from ..recipes import MaskRecipe
from .plan import Task

if TYPE_CHECKING:  # it compiles kernels, which masks from elsewhere do without
    from ..pipeline import Foreground


class RowMaker(Protocol):
    """A way to make a row; travels to the workers by pickle."""

    def as_dict(self) -> dict[str, Any]:
        """Return every parameter, ready for JSON; the mask file records it as its recipe."""

    def row(self, images: OriginalImages, path: str) -> MaskRow:
        """Make the row of one image; see `segmented_row`."""


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


def make_rows(images: OriginalImages, task: Task, maker: RowMaker) -> TaskResult:
    """Make the rows of some images, on one thread.

    Args:
        images: the folder, archives or store that they are in.
        task: which.
        maker: how.

    Raises:
        UserError: if an image that was listed is gone.
    """
    use_one_thread()
    start = time.perf_counter()
    rows = [maker.row(images, path) for path in task.paths]
    return TaskResult(task, rows, time.perf_counter() - start)


def segmented_row(
    images: OriginalImages, path: str, recipe: MaskRecipe, find: Callable[[Pixels], Foreground]
) -> MaskRow:
    """Make one image's row; an image that cannot be used becomes a row that says why.

    Args:
        images: what it is in.
        path: its name there.
        recipe: gives the working size and what counts as a low confidence.
        find: finds the foreground of a decoded image.

    Raises:
        UserError: if the image was listed but is gone, as after the loss of a network folder.
    """
    try:
        data = images.read_bytes(path)
        header = read_header(data, path)
        image = decode_image(data, path, reduce_to=recipe.work_size, header=header, reader=recipe.reader)
    except ImageError as error:
        return MaskRow(path=path, reason=error.reason, file_bytes=images.file_bytes(path))
    found = find(image)
    return pack_mask(
        path,
        found.mask,
        header.size,
        confidence=found.confidence,
        low_confidence=recipe.low_confidence,
        file_bytes=len(data),
    )

"""What a worker process does: read images, find their foreground, pack the masks. Never imports torch."""

from __future__ import annotations

import errno
import functools
import os
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from ..data.errors import UserError
from ..data.images import ImageError, decode_image, encoded_size, read_bytes
from ..data.maskwrite import MaskRow, pack_mask
from .pipeline import segment
from .recipes import Recipe

# the file is there but this user, or anyone, may not read it; anything else means that the folder went away
_OWN_FAULT = frozenset((errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG))


class TaskResult(NamedTuple):
    """The rows of one task and the seconds a worker spent on it."""

    rows: list[MaskRow]
    seconds: float


@functools.cache
def use_one_thread() -> None:
    """Keep this process to one core: the parallel work is one process per core."""
    cv2.setNumThreads(1)
    threadpool_limits(1)


def make_rows(root: str, paths: tuple[str, ...], recipe: Recipe) -> TaskResult:
    """Make the rows of some images.

    Args:
        root: the image folder.
        paths: relative to it.
        recipe: how to find the foreground.

    Raises:
        UserError: if an image that was listed is gone.
    """
    use_one_thread()
    start = time.perf_counter()
    rows = [make_row(root, path, recipe) for path in paths]
    return TaskResult(rows, time.perf_counter() - start)


def make_row(root: str, path: str, recipe: Recipe) -> MaskRow:
    """Make one image's row; an image that cannot be used becomes a row that says why.

    Raises:
        UserError: if the image was listed but is gone, as after the loss of a network folder.
    """
    file = Path(root, path)
    data = b""
    try:
        data = read_bytes(file)
        size = encoded_size(data, path)
        image = decode_image(data, path, reduce_to=recipe.work_size)
    except ImageError as error:
        return MaskRow(path=path, reason=error.reason, file_bytes=len(data) or _file_bytes(file))
    except OSError as error:
        if error.errno in _OWN_FAULT or (file.is_symlink() and Path(root).is_dir()):
            return MaskRow(
                path=path, reason=f"cannot be read: {error.strerror}", file_bytes=_file_bytes(file)
            )
        raise UserError(f"{file} was listed but cannot be read any more ({error.strerror})") from error
    found = segment(image, recipe)
    return pack_mask(
        path,
        np.asarray(found.mask, bool),
        size,
        confidence=float(found.confidence),
        low_confidence=recipe.low_confidence,
        file_bytes=len(data),
    )


def _file_bytes(file: Path) -> int:
    """Size of a file that could not be used, 0 if even that is unknown."""
    return os.stat(file).st_size if os.path.exists(file) else 0  # noqa: PTH116, PTH110 (a lost race would be rare and loud)

"""Files are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it is synced to disk and put in place of `path`.

    Readers see the old file or the new one, never a half. After an exception nothing of the new file stays.

    Args:
        path: the final path; missing parent folders are made.

    Yields:
        The path to write to, in the same folder (a rename across file systems would not be atomic).

    Raises:
        UserError: if the folder cannot be made or written, or the disk is full; names the path.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with open(part, "rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
            _sync_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"cannot write {target}: a folder on the way is a file; choose another place"
        ) from error
    except IsADirectoryError as error:
        raise UserError(f"cannot write {target}: it is a folder; give the name of a file") from error
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; "
            "free some space or choose a folder you may write to"
        ) from error


def refuse_unwritable(path: str | os.PathLike[str]) -> None:
    """Refuse a place that `atomic_write` could not write to, before hours of work end there. Makes nothing.

    Raises:
        UserError: if the path is a folder, a folder on the way is a file, or the folder may not be written.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"cannot write {target}: it is a folder; give the name of a file")
    folder = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir():
        raise UserError(
            f"cannot write {target}: a folder on the way is a file ({folder}); choose another place"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {target}: {folder} may not be written to; choose another place")


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

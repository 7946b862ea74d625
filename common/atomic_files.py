"""Files are written whole or not at all, and what a killed process left half-written is cleared away.

A file in the making is called `.NAME.HOST.PROCESS.part` and lies beside its place. When a process first
writes into a folder it removes such files there whose process on this machine is dead. Those of another
machine may be alive (on a shared disk), so they are removed only when nobody has touched them for a day.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .errors import UserError

PART = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<process>\d+)\.part", re.DOTALL)
FOREIGN_SECONDS = 24 * 3600  # a write of another machine that has stood still for so long is dead
_LONGEST_NAME = 120  # bytes of the file's own name in the part's, which may have 255 in all
_FIRST_NAMESPACE = 4026531836  # Linux's number for the process numbers of a machine without containers
_swept: set[Path] = set()


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
    part = part_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent not in _swept:
            remove_leftovers(target.parent)
        try:
            yield part
            with open(part, "rb+") as written:  # Windows syncs only what may be written
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


def part_path(target: Path) -> Path:
    """Where this process writes a file until it is whole."""
    name = os.fsencode(target.name)
    if len(name) > _LONGEST_NAME:
        name = name[:_LONGEST_NAME] + hashlib.sha256(name).hexdigest()[:16].encode()
    return target.with_name(f".{os.fsdecode(name)}.{_host()}.{os.getpid()}.part")


def is_part(name: str) -> bool:
    """Whether a file name is that of a file in the making, of whatever process."""
    return PART.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the files in the making that dead processes left in a folder (not below it)."""
    _swept.add(folder)
    try:
        found = [path for path in folder.iterdir() if is_part(path.name)]
    except OSError:  # nothing to clear where nothing can be listed; what is done there next will say why
        return
    for path in found:
        match = PART.fullmatch(path.name)
        assert match is not None
        with suppress(OSError):  # gone meanwhile, or another user's
            changed = path.stat().st_mtime
            own = match["host"] == _host()
            if _is_dead(int(match["process"]), changed) if own else time.time() - changed > FOREIGN_SECONDS:
                path.unlink()


def _is_dead(process: int, changed: float) -> bool:
    """Whether the process that last changed a file is gone; its number may have gone to a younger one."""
    import psutil  # here, for `hapicl --help`

    try:
        found = psutil.Process(process)
        younger = found.create_time() > changed + 2  # seconds, for the clocks of disk and kernel may differ
        return bool(younger or found.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


@cache
def _host() -> str:
    """Name the machine, and the container where process numbers are its own."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40] or "host"
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 (a link to nowhere, but it has a number)
    except OSError:
        return name
    return name if namespace == _FIRST_NAMESPACE else f"{name}-{namespace}"


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
    """Make a rename in `folder` survive a power cut, where the system can open a folder (Windows cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

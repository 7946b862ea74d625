"""Locks: one process at a time works in a folder or on a file, and a second one is told who.

The operating system's advisory lock (`flock`; for Windows see `system/file_locks.py`) on a small file that
names its holder. The kernel lets go of it when the holder ends, also by kill -9, so no lock is ever stale. It
is used directly, not through a library: the shards of a build need shared locks, and a holder writes its name
into the very file.

On local disks this holds for all processes. On network disks it holds between machines where the server
passes locks on: NFS 4, NFS 3 with lockd, Lustre mounted with `flock`, GPFS, CephFS. Where a disk has no
locks at all, a warning says so and the work goes on; where locks are local to a machine (Lustre with
`localflock`, NFS with `local_lock`), two machines do not see each other.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from .errors import UserError
from .system import file_locks

logger = logging.getLogger("hapicl.common")

LOCK = ".lock"  # in a folder that is held
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # what disks without locks answer
_TRIES = 100  # a lock file may vanish between opening and locking, when its holder leaves just then
_held: set[int] = set()


def hold_folder(folder: Path, *, advice: str) -> AbstractContextManager[None]:
    """Hold a folder; see `hold`. It is made, and if it is empty in the end it is removed again."""
    return hold(folder / LOCK, str(folder), advice=advice)


def hold_file(file: Path, *, advice: str) -> AbstractContextManager[None]:
    """Hold the right to write a file; see `hold`. The lock lies beside it, hidden, while it is held."""
    return hold(file.with_name(f".{file.name}{LOCK}"), str(file), advice=advice)


@contextmanager
def hold(path: Path, what: str, *, advice: str, shared: bool = False) -> Iterator[None]:
    """Hold a lock file until the context ends; it is removed then, with the folders made for it if empty.

    Processes forked meanwhile do not hold it, so it is free as soon as this process is gone.

    Args:
        path: the lock file.
        what: is being held, for the message.
        advice: what a second process may do, for the message.
        shared: let others hold it too, as long as they share it.

    Raises:
        UserError: if another process holds it, naming host and process; or if the place cannot be written.
    """
    made: list[Path] = []
    descriptor = _acquire(path, what, advice, shared, made)
    _held.add(descriptor)
    try:
        if not shared:
            _write_holder(descriptor, path)
        yield
    finally:
        if descriptor in _held:  # else this is a forked child, which let go of it at once
            _held.discard(descriptor)
            _release(path, descriptor, made)


def _acquire(path: Path, what: str, advice: str, shared: bool, made: list[Path]) -> int:
    """Open and lock the file; gives its descriptor, and adds the folders that had to be made."""
    for _ in range(_TRIES):
        try:
            missing = [folder for folder in path.absolute().parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            made += [folder for folder in missing if folder not in made]
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # its holder has just removed the folder
        except OSError as error:
            raise UserError(
                f"cannot work in {path.parent}: {error.strerror}; choose a place that you may write to"
            ) from error
        try:
            file_locks.lock(descriptor, shared=shared)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise UserError(f"{what} is in use by {holder}; {advice}") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            logger.warning(
                "the disk of %s has no locks (%s): nothing keeps a second process from writing there too",
                path.parent,
                error.strerror,
            )
            return descriptor
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
    raise UserError(f"cannot lock {path}: it vanishes again and again; is something deleting it?")


def _release(path: Path, descriptor: int, made: list[Path]) -> None:
    """Remove the lock file unless others share it, let go, and remove folders that stayed empty."""
    alone = True
    try:
        file_locks.lock(descriptor)
    except BlockingIOError:
        alone = False
    except OSError:  # no locks here; nobody else can be told from us
        pass
    ours = alone and _is_at(descriptor, path)
    if ours and file_locks.can_remove_open_files():
        path.unlink(missing_ok=True)
    file_locks.unlock(descriptor)
    os.close(descriptor)
    if ours and not file_locks.can_remove_open_files():
        with suppress(OSError):  # another process has opened it meanwhile
            path.unlink()
    with suppress(OSError):  # not empty, or gone
        for folder in made:
            folder.rmdir()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at `path`, not one that was deleted meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int, path: Path) -> None:
    """Name this process in the lock file.

    Raises:
        UserError: if the disk is full.
    """
    since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    except OSError as error:
        raise UserError(
            f"cannot work in {path.parent}: {error.strerror}; free some space or choose another place"
        ) from error


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words; a holder that shares it or has only just begun is not named."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 500).decode("utf-8", "replace").strip() or "another process"


def _let_go_in_child() -> None:
    """A forked child (a loader worker) must not keep the lock when its parent is killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_let_go_in_child)

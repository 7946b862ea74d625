"""A lock on an open file, exclusive or shared: `flock`, or locked bytes on Windows (not run there).

Windows has no shared locks of the kind wanted: there each that shares takes one byte of a stretch far behind
the file's end, and one that wants the file alone takes the whole stretch.
"""

from __future__ import annotations

import errno
import importlib
import os
from typing import Any

SHARERS = 1024  # that fit into the stretch
STRETCH = 1 << 30  # where it begins, bytes; what lies before can be read while it is locked
_locked: dict[int, tuple[int, int]] = {}  # on Windows: descriptor -> first byte and bytes that it holds


def _module(name: str) -> Any:
    """A module of the standard library, None where this system has none of that name."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module("fcntl"), _module("msvcrt")


def lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file, or change the lock that this descriptor has; never waits.

    Args:
        descriptor: of the file, open for reading and writing.
        shared: let others hold it too, as long as they share it.

    Raises:
        BlockingIOError: if another holds it. A lock that was to be changed may be lost then.
        OSError: if the disk, or the system, has no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif msvcrt is not None:
        _lock_bytes(descriptor, shared=shared)
    else:
        raise OSError(errno.ENOSYS, "no locks on this system")


def can_remove_open_files() -> bool:
    """Whether a file may be removed while it is open; on Windows it must be closed first."""
    return fcntl is not None


def _lock_bytes(descriptor: int, *, shared: bool) -> None:
    """`lock`, on Windows."""
    unlock(descriptor)
    length = 1 if shared else SHARERS
    for first in range(STRETCH, STRETCH + SHARERS, length):
        os.lseek(descriptor, first, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, length)
        except PermissionError:  # what Windows says of locked bytes
            continue
        _locked[descriptor] = (first, length)
        return
    raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process")


def unlock(descriptor: int) -> None:
    """Let go before the file is closed: Windows may do it late. Elsewhere closing is enough."""
    if descriptor in _locked:
        first, length = _locked.pop(descriptor)
        os.lseek(descriptor, first, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, length)

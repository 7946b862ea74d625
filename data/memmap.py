"""HDF5 datasets as arrays on a memory map: read without an HDF5 call, shared by all processes."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

_LARGEST_RATIO = 1032  # of a deflated array to its bytes in the file; more is a bomb
# what h5py raises for damaged files beside OSError; which of them is not documented
DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError)


class WatchedFile:
    """A mapped file, kept open to notice that somebody changes it in place.

    Reading the map of a file that was cut short ends the process with SIGBUS, and one that was written over
    gives another training; so whoever reads asks first. A file that was replaced (by a rename, as hapicl
    does) is another file: the map goes on showing the old one, which is whole.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._seen = self._identity()

    def changed(self) -> bool:
        """Say whether size or time of change are others than at first."""
        return self._identity() != self._seen

    def _identity(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


def memmap_dataset(file: h5py.File, name: str, kind: str, mapping: mmap.mmap) -> NDArray[Any]:
    """Give a read-only array on the memory map; a dataset repacked with chunks or filters is read whole.

    Args:
        file: the open file.
        name: of the dataset.
        kind: its numpy type, such as "<i4"; "S" for byte strings of any length.
        mapping: the same file.

    Raises:
        ValueError: if there is no such array in this file itself, or it is of another kind.
        OSError, KeyError, TypeError, RuntimeError, ...: as h5py does, all of them in `DAMAGE`.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"it holds no {name!r}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"its {name!r} is no array")
    wanted = np.dtype(kind)
    if dataset.dtype.kind != wanted.kind or (wanted.itemsize and dataset.dtype != wanted):
        raise ValueError(f"its {name!r} is an array of {dataset.dtype}, not of {wanted}")
    if dataset.is_virtual or dataset.external is not None:
        raise ValueError(f"its {name!r} lies in another file")
    offset = dataset.id.get_offset()
    if offset is not None and dataset.size:
        values = np.frombuffer(mapping, dataset.dtype, dataset.size, offset).reshape(dataset.shape)
    elif dataset.nbytes > _LARGEST_RATIO * len(mapping):
        raise ValueError(f"its {name!r} claims {dataset.nbytes} bytes")
    else:
        values = dataset[...]
    values.flags.writeable = False
    return values


def why_unreadable(path: str | os.PathLike[str], what: str, maker: str, error: Exception) -> str:
    """Say why a file does not open and what to do; to delete it is advised only where it is damaged.

    Args:
        path: the file.
        what: it should be, such as "a mask file".
        maker: command that writes such files.
        error: of `DAMAGE`.
    """
    give, text = f"give the file that `{maker}` wrote", str(error)
    if Path(path).is_dir():
        reason, advice = "it is a folder", give
    elif isinstance(error, OSError) and error.errno is not None:
        reason, advice = os.strerror(error.errno), f"put that right, or {give}"
    elif "locking" in text or "already open" in text:
        reason = "it is open already, with HDF5's file locking"
        advice = "close it there, or open it there with locking=False"
    elif "signature not found" in text:
        reason, advice = "it is no HDF5 file", give
    else:
        reason, advice = text, f"copy it again, or delete this one and run `{maker}` again"
    return f"{path} cannot be read as {what}: {reason}; {advice}"

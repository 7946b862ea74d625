"""Image paths as the sorted keys of a file: how mask files and image packs name, order and find their rows.

Shape legend: N rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_FORBIDDEN = re.compile(rb"[\0:\\]" if os.name == "nt" else rb"\0")  # in a key


def encode_path(path: str) -> bytes:
    """Return the bytes by which rows are sorted and found."""
    return path.encode("utf-8", "surrogateescape")


def decode_path(key: bytes) -> str:
    """Return the path of a row's bytes; names that are not UTF-8 survive the round trip."""
    return key.decode("utf-8", "surrogateescape")


def is_safe_key(key: bytes) -> bool:
    """Say whether a key is a file below the folder that it is joined to: relative, without `..` or NUL.

    On Windows neither a drive nor another separator may stand in it; no file's name holds those there.
    """
    named = bool(key.strip(b"./"))
    inside = not key.startswith(b"/") and b".." not in key.split(b"/")
    return named and inside and _FORBIDDEN.search(key) is None


class PathList(Sequence[str]):
    """The sorted paths of a mask file as a sequence of str, decoded one at a time."""

    def __init__(self, keys: NDArray[np.bytes_]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [decode_path(key) for key in self._keys[index].tolist()]
        return decode_path(bytes(self._keys[index]))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and find_row(self._keys, path) is not None


def find_row(keys: NDArray[np.bytes_], path: str) -> int | None:
    """Return the row of a path among sorted keys, or None."""
    key = encode_path(path)
    if len(key) > keys.dtype.itemsize:  # numpy would widen a copy of every key to compare
        return None
    row = int(np.searchsorted(keys, np.bytes_(key)))
    return row if row < len(keys) and keys[row] == key else None

"""Archives as a source of images: any member at any time, its bytes exactly those of the unpacked file."""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ....common.errors import UserError
from ...path_keys import PathList, find_row
from ..decode import MAX_BYTES, ImageError, read_header
from ..store import Encoded
from .index import Identity, Index, identities, open_index
from .members import PLAIN, WHY_NOT

_OPEN_FILES = 64  # archives that a process keeps open; a shell allows it 1,024 files in all
_LOCAL_HEADER = struct.Struct("<4s5HIIIHH")  # of a zip's member, before its name and extra field
_STORED, _DEFLATED = 0, 8


class ArchiveStore:
    """The images of some archives, called as if all were unpacked into one folder.

    Nothing is unpacked. Each process opens archives of its own as it reads from them.

    Args:
        location: what the user gave.
        archives: paths of tar and zip files, absolute.
        names: what each is called where two hold images of the same name; None takes their paths below
            their common folder, without suffix.

    Raises:
        UserError: if an archive is gone; (at the first use) if one is damaged, or compressed as a whole.
    """

    def __init__(self, location: str, archives: Sequence[Path], names: Sequence[str] | None = None) -> None:
        self._location = location
        self._archives = identities(archives)
        self._names = tuple(names) if names is not None else _names(archives)
        self._index: Index | None = None
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopened, (self._location, self._archives, self._names)

    @property
    def location(self) -> str:
        """What the user gave, absolute."""
        return self._location

    def paths(self) -> list[str]:
        """All images, sorted."""
        return list(PathList(self._rows().columns["path"]))

    def read(self, path: str) -> Encoded:
        """Read one image and its header."""
        data = self.read_bytes(path)
        header = read_header(data, path)
        return Encoded(data, header.size, header)

    def image_size(self, path: str) -> tuple[int, int]:
        """Height and width in pixels."""
        return read_header(self.read_bytes(path), path).size

    def file_bytes(self, path: str) -> int:
        """Size of an image's file, bytes."""
        row = find_row(self._rows().columns["path"], path)
        return 0 if row is None else int(self._rows().columns["size"][row])

    def read_bytes(self, path: str) -> bytes:
        """Read one image whole."""
        columns = self._rows().columns
        row = find_row(columns["path"], path)
        if row is None:
            raise ImageError(path, f"not in {self._location}")
        kind, number, offset, stored, size = (
            int(columns[name][row]) for name in ("kind", "archive", "offset", "stored", "size")
        )
        if kind in WHY_NOT:
            raise ImageError(path, WHY_NOT[kind])
        if max(size, stored) > MAX_BYTES:
            raise ImageError(path, f"{size} bytes are more than the limit of {MAX_BYTES}")
        if kind == PLAIN:
            return self._take(number, offset, size, path)
        return self._unzipped(path, number, offset, stored, size, int(columns["crc32"][row]))

    def _unzipped(self, path: str, number: int, offset: int, stored: int, size: int, crc32: int) -> bytes:
        """Read a zip's member, stored or deflated, and check it."""
        header = self._take(number, offset, _LOCAL_HEADER.size, path)
        magic, _, _, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        if magic != b"PK\3\4":
            raise ImageError(path, f"damaged in {self._archives[number][0]}: no header where it should be")
        begin = offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        data = self._take(number, begin, stored, path)
        if method == _DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise ImageError(path, f"damaged in {self._archives[number][0]}: {error}") from error
        elif method != _STORED:
            raise ImageError(path, f"compressed by method {method}; only stored and deflated files are read")
        if len(data) != size or zlib.crc32(data) != crc32:
            raise ImageError(path, f"damaged in {self._archives[number][0]}: wrong checksum")
        return data

    def _take(self, number: int, offset: int, length: int, path: str) -> bytes:
        """Read bytes of an archive."""
        descriptor = self._file(number).descriptor
        try:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, length)
        except OSError as error:
            raise ImageError(path, f"cannot be read: {error.strerror or error}") from error
        if len(data) != length:
            raise ImageError(path, f"{self._archives[number][0]} ends within it")
        return data

    def _file(self, number: int) -> _Opened:
        """Open an archive in this process, as it was when it was walked.

        Raises:
            UserError: if it is gone, or was changed since.
        """
        if self._process != os.getpid():  # forked: a file's position is shared with the parent
            self._process, self._open = os.getpid(), OrderedDict()
        name, size, changed = self._archives[number]
        file = self._open.pop(number, None)
        try:
            file = file or _Opened(name)
            status = os.fstat(file.descriptor)
        except OSError as error:
            raise UserError(f"cannot read the archive {name} any more: {error.strerror}") from error
        if (status.st_size, status.st_mtime_ns) != (size, changed):
            raise UserError(
                f"{name} was changed since its images were listed; give the same command again (a training "
                "goes on with --resume auto where the images are the same)"
            )
        self._open[number] = file
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)
        return file

    def _rows(self) -> Index:
        """The index, opened at the first use in each process."""
        if self._index is None:
            self._index = open_index(self._archives, self._names)
        return self._index


class _Opened:
    """An archive that is open in this process; closed when nobody has it any more."""

    def __init__(self, name: str) -> None:
        self.descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.descriptor).atexit = False


@lru_cache(maxsize=4)  # a worker is sent the store with every task
def _reopened(location: str, archives: tuple[Identity, ...], names: tuple[str, ...]) -> ArchiveStore:
    """Open in another process what was opened in the first, of the same archives."""
    store = ArchiveStore(location, [Path(path) for path, *_ in archives], names)
    store._archives = archives  # another one there now is refused when it is read
    return store


def _names(archives: Sequence[Path]) -> tuple[str, ...]:
    """Archives below their common folder, without suffix; with it where two differ in nothing else."""
    common = os.path.commonpath([path.parent for path in archives])
    whole = [path.relative_to(common).as_posix() for path in archives]
    short = [name.rpartition(".")[0] for name in whole]
    return tuple(short if len(set(short)) == len(short) else whole)

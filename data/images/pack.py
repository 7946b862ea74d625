"""The image pack: a folder's images as encoded bytes in one HDF5 file.

It serves network disks and millions of small files. Like the mask file it is keyed by path, sorted, and read
from a memory map; `pack_build.py` writes it.

    /path (N,) bytes, sorted      /image_size (N, 2) int32, upright height and width of the original, pixels
    /offset (N + 1,) int64        /blob uint8, all images one after another
    /crc32 (N,) uint32 of each image's bytes

Views are drawn in pixels of the original, so a pack gives the same crops as its folder.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...common.atomic_files import atomic_write
from ...common.errors import UserError
from ..masks.format import FORMAT as MASK_FORMAT
from ..memmap import DAMAGE, WatchedFile, memmap_dataset, why_unreadable
from ..path_keys import PathList, find_row
from .decode import ImageError
from .store import Encoded, location_of

FORMAT = "hapicl images"
VERSION = 1
PACK = "an image pack"
COLUMNS = {"path": "S", "image_size": "<i4", "offset": "<i8", "crc32": "<u4"}


@dataclass(frozen=True)
class PackRow:
    """One packed image."""

    key: bytes
    image_size: tuple[int, int]
    data: bytes


class ImagePack:
    """Random access to a pack by image path; opened at the first use in each process.

    Args:
        path: the file.

    Raises:
        UserError: (at the first use) if it is missing, damaged, or no pack.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._columns: dict[str, NDArray[Any]] | None = None
        self._file: WatchedFile | None = None
        self._description: dict[str, Any] = {}

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.__init__(path)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.column("path"))

    @property
    def description(self) -> dict[str, Any]:
        """How the pack was made: image_root, short_side, quality, unreadable images with reasons."""
        self.column("path")
        return self._description

    @property
    def location(self) -> str:
        """The file's absolute path."""
        return location_of(self.path)

    def paths(self) -> list[str]:
        """All paths, sorted."""
        return list(PathList(self.column("path")))

    def column(self, name: str) -> NDArray[Any]:
        """Return one dataset, on the memory map.

        Raises:
            UserError: if the file was cut short or written over in place since it was opened.
        """
        if self._columns is None:
            self._open()
        assert self._columns is not None
        assert self._file is not None
        if self._file.changed():
            raise UserError(
                f"{self.path} was changed while it was in use (cut short or written over); pack the images "
                "again, and go on from the last checkpoint with --resume auto"
            )
        return self._columns[name]

    def read(self, path: str) -> Encoded:
        """Read one image's bytes and check them.

        Raises:
            ImageError: if the pack has no such image, or its bytes are damaged.
        """
        row = find_row(self.column("path"), path)
        if row is None:
            raise ImageError(path, f"not in {self.path}; run `hapicl data pack` again")
        start, stop = self.column("offset")[row : row + 2].tolist()
        data = self.column("blob")[start:stop].tobytes()
        if zlib.crc32(data) != int(self.column("crc32")[row]):
            raise ImageError(path, f"damaged in {self.path}: wrong checksum; run `hapicl data pack` again")
        height, width = self.column("image_size")[row].tolist()
        return Encoded(data, (height, width))

    def _open(self) -> None:
        """Read the header and map the columns."""
        try:
            with open(self.path, "rb") as raw, h5py.File(self.path, "r", locking=False) as file:
                self._file = WatchedFile(raw)
                if (kind := _kind(file)) != PACK:
                    raise UserError(
                        f"{self.path} is {kind}, no image pack; give a folder of images, or a file made by "
                        "`hapicl data pack`"
                    )
                if int(file.attrs["version"]) != VERSION:
                    raise UserError(f"{self.path} has another version of the format; pack the images again")
                mapping = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
                kinds = {**COLUMNS, "blob": "|u1"}
                columns = {name: memmap_dataset(file, name, kind, mapping) for name, kind in kinds.items()}
                self._description = json.loads(str(file.attrs["description"]))
        except UserError:
            raise
        except DAMAGE as error:
            raise UserError(why_unreadable(self.path, "an image pack", "hapicl data pack", error)) from error
        if self._file.changed():
            raise UserError(f"{self.path} is being written to; wait until that is done")
        _check(columns, self.path)
        self._columns = columns


def file_kind(path: str | os.PathLike[str]) -> str:
    """What a file is, in words: `PACK`, a mask file, or something else."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _kind(file)
    except OSError:
        return "a folder" if Path(path).is_dir() else "no HDF5 file, or a damaged one"


def _kind(file: h5py.File) -> str:
    """What an open HDF5 file is, in words."""
    kinds = {FORMAT: PACK, MASK_FORMAT: "a mask file"}
    recorded = file.attrs.get("format")
    return kinds.get(recorded if isinstance(recorded, str) else "", "an HDF5 file of another program")


def write_pack(
    out: str | os.PathLike[str],
    columns: dict[str, Any],
    pieces: Iterable[NDArray[np.uint8]],
    description: Any,
) -> None:
    """Write a pack, whole or not at all.

    Args:
        out: the file.
        columns: the datasets of `COLUMNS`, sorted by path.
        pieces: the bytes of the images in that order, in stretches of any length.
        description: JSON-able.
    """
    with atomic_write(out) as part, h5py.File(part, "w") as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["description"] = json.dumps(description, sort_keys=True)
        for name, kind in COLUMNS.items():
            values = np.asarray(columns[name])
            file.create_dataset(name, data=values if kind == "S" else values.astype(kind))
        blob = file.create_dataset("blob", (int(columns["offset"][-1]),), dtype=np.uint8)
        start = 0
        for piece in pieces:
            blob[start : start + len(piece)] = piece
            start += len(piece)


def columns_of(rows: Sequence[PackRow]) -> dict[str, Any]:
    """The datasets of some rows, already sorted by key."""
    return {
        "path": np.array([row.key for row in rows] or [b""], dtype=np.bytes_)[: len(rows)],
        "image_size": np.array([row.image_size for row in rows], "<i4").reshape(-1, 2),
        "offset": np.cumsum([0] + [len(row.data) for row in rows]).astype("<i8"),
        "crc32": np.array([zlib.crc32(row.data) for row in rows], "<u4"),
    }


def _check(columns: dict[str, NDArray[Any]], path: str) -> None:
    """Refuse columns that do not belong together.

    Raises:
        UserError: names the file.
    """
    count, offset = columns["path"].size, columns["offset"]
    shapes = {"path": (count,), "image_size": (count, 2), "offset": (count + 1,), "crc32": (count,)}
    shapes["blob"] = (columns["blob"].size,)
    if any(columns[name].shape != shape for name, shape in shapes.items()):
        raise UserError(f"{path} is damaged: its columns do not belong together; pack the images again")
    if offset[0] != 0 or offset[-1] != len(columns["blob"]) or (np.diff(offset) < 0).any():
        raise UserError(f"{path} is damaged: its offsets do not fit its bytes; pack the images again")

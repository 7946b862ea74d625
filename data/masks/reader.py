"""Reading mask files: random access by image path from a memory map; the format stands in `format.py`.

Shape legend: H, W an image, h, w its mask, S view cells per side.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from ...common.errors import UserError
from ..geometry import ViewGeometry
from ..memmap import DAMAGE, WatchedFile, memmap_dataset, why_unreadable
from ..path_keys import PathList, decode_path, find_row
from .format import (
    COLUMNS,
    FORMAT,
    MAX_MASK_SIDE,
    STATUSES,
    VERSION,
    MaskError,
    MaskStatus,
    check_columns,
    read_description,
)
from .integral import MaskIntegral

PIECE_BYTES = 1 << 24

__all__ = ["MaskError", "MaskIntegral", "MaskReader", "MaskStatus"]


class MaskReader:
    """Random access to a mask file by image path.

        >>> reader = MaskReader("masks.h5")
        >>> reader.paths[0], reader.image_size(reader.paths[0])
        ('a/astronaut.jpg', (320, 320))
        >>> reader["a/astronaut.jpg"].shape
        (160, 160)

    The file is opened at the first use in each process; a pickled reader carries only its path and the digest
    of its content, so it crosses fork and spawn and notices when the file was replaced in between. Whether
    the open file was changed in place is looked at before each access, and each mask is compared with its
    crc32.

    Args:
        path: the mask file.

    Raises:
        MaskError: (at the first use) if the file is missing, damaged, or no mask file; (at any use) if it was
            cut short or written over in place since.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._digest: str | None = None
        self._data: dict[str, NDArray[Any]] | None = None
        self._file: WatchedFile | None = None
        self._attributes: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_digest": self._digest, "_data": None, "_file": None, "_attributes": {}}

    @property
    def paths(self) -> PathList:
        """The images' paths relative to the image root, sorted."""
        return PathList(self.column("path"))

    @property
    def attributes(self) -> dict[str, Any]:
        """What the file says of itself: recipe, image_root, libraries, counts, digests, times, complete."""
        self.column("path")
        return self._attributes

    @property
    def content_digest(self) -> str:
        """Digest of rows, bits and recipe: equal for files that train alike."""
        return str(self.attributes["content_digest"])

    @property
    def image_root(self) -> str:
        """The folder the paths are relative to, as it was when the masks were built."""
        return str(self.attributes["image_root"])

    @property
    def recipe(self) -> dict[str, Any]:
        """Every parameter the masks were made with."""
        recipe: dict[str, Any] = self.attributes["recipe"]
        return recipe

    def column(self, name: str) -> NDArray[Any]:
        """Return one dataset as a read-only array on the memory map (names: see the top of this file)."""
        return self._columns()[name]

    def _columns(self) -> dict[str, NDArray[Any]]:
        """All datasets, after a look whether the file is still the one that was opened."""
        if self._data is None:
            self._open()
        assert self._data is not None
        assert self._file is not None
        if self._file.changed():
            raise MaskError(
                f"{self.path} was changed while it was in use (cut short or written over); put a whole mask "
                "file there, and go on from the last checkpoint with --resume auto"
            )
        return self._data

    def __len__(self) -> int:
        return len(self.column("path"))

    def __contains__(self, path: object) -> bool:
        return path in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def row(self, path: str) -> int:
        """Return the row of a path.

        Raises:
            MaskError: if the file has no such path.
        """
        row = find_row(self.column("path"), path)
        if row is None:
            raise MaskError(
                f"{self.path} has no mask for {path!r}; paths are relative to {self.image_root}; "
                "new images are added by `hapicl masks build --update`"
            )
        return row

    def __getitem__(self, path: str) -> NDArray[np.bool_]:
        """Return the mask of an image, (h, w) bool at the stored size.

        Raises:
            MaskError: if there is none, or it is damaged.
        """
        return self._unpack(self.row(path)).view(np.bool_)

    def integral(
        self, path: str, size: tuple[int, int] | None = None, *, row: int | None = None
    ) -> MaskIntegral:
        """Unpack a mask once for several crops.

        Args:
            path: the image.
            size: the upright (H, W) of the image now, to refuse a mask that was made for another size.
            row: of the path in this file, where the caller has found it before.

        Raises:
            MaskError: if there is none, it is damaged, or was made for an image of another size.
        """
        row = self.row(path) if row is None else row
        if size is not None:
            self._check_size(row, path, size)
        table = np.asarray(cv2.integral(self._unpack(row)), np.int32)
        return MaskIntegral(table, self._image_size(row), path)

    def crop(self, path: str, geometry: ViewGeometry, size: int) -> NDArray[np.float32]:
        """Occupancy of a view's cells, (S, S) float32 in [0, 1]; see `MaskIntegral.crop`."""
        return self.integral(path).crop(geometry, size)

    def image_size(self, path: str) -> tuple[int, int]:
        """(H, W) of the upright image when its mask was made; (0, 0) where it was unreadable."""
        return self._image_size(self.row(path))

    def status(self, path: str) -> MaskStatus:
        """What the row of a path holds."""
        return STATUSES[int(self.column("status")[self.row(path)])]

    def coverage(self, path: str) -> float:
        """Foreground share of the mask, in [0, 1]; nan where there is none."""
        return float(self.column("coverage")[self.row(path)])

    def confidence(self, path: str) -> float:
        """How clearly the image fell into two parts, in [0, 1]; nan where there is no mask."""
        return float(self.column("confidence")[self.row(path)])

    def reasons(self) -> dict[str, str]:
        """Return path -> why it has no mask, for every such row."""
        paths, rows, reasons = self.paths, self.column("reason_row"), self.column("reason")
        return {
            paths[int(row)]: decode_path(bytes(reason)) for row, reason in zip(rows, reasons, strict=True)
        }

    def _check_size(self, row: int, path: str, size: tuple[int, int]) -> None:
        """Refuse a mask that was made for an image of another size."""
        recorded = self._image_size(row)
        if recorded != tuple(size):
            raise MaskError(
                f"{path} is {size[0]} x {size[1]} pixels now but its mask in {self.path} was made for "
                f"{recorded[0]} x {recorded[1]}; run `hapicl masks build --update`"
            )

    def _image_size(self, row: int) -> tuple[int, int]:
        height, width = self.column("image_size")[row].tolist()
        return height, width

    def packed(self, row: int) -> bytes:
        """Return the packed bits of a row, decompressed; row-major, each row of pixels padded to bytes.

        Raises:
            MaskError: if the row has no mask or is damaged.
        """
        columns = self._columns()
        start, stop = columns["offset"][row : row + 2].tolist()
        height, width = columns["mask_size"][row].tolist()
        length = height * -(-width // 8)
        if start == stop:
            path = self.paths[row]
            raise MaskError(f"{path} has no mask: {self.reasons().get(path, 'nothing stored')}")
        if max(height, width) > MAX_MASK_SIDE:
            raise self._damage(row, f"claims a mask of {height} x {width}")
        try:
            # the length is bounded, so a damaged row cannot fill the memory
            bits = zlib.decompressobj().decompress(columns["blob"][start:stop].data, length + 1)
        except zlib.error as error:
            raise self._damage(row, str(error)) from error
        if len(bits) != length:
            raise self._damage(row, f"not {length} bytes of bits")
        if zlib.crc32(bits) != columns["crc32"].item(row):
            raise self._damage(row, "crc32 does not match, the mask has changed since it was written")
        return bits

    def blob_pieces(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """The stored bytes of many masks, in pieces; whether the file has changed is asked before each."""
        stop = len(self.column("blob")) if stop is None else stop
        for begin in range(start, stop, PIECE_BYTES):
            yield self.column("blob")[begin : min(stop, begin + PIECE_BYTES)]

    def _damage(self, row: int, what: str) -> MaskError:
        """The error for a damaged row."""
        return MaskError(f"{self.path} is damaged at {self.paths[row]}: {what}; build the masks again")

    def _unpack(self, row: int) -> NDArray[np.uint8]:
        """A mask as (h, w) uint8 of 0 and 1."""
        bits = np.frombuffer(self.packed(row), np.uint8)
        height, width = self._columns()["mask_size"][row].tolist()
        return np.unpackbits(bits.reshape(height, -1), axis=1, count=width)

    def _open(self) -> None:
        """Read the header and map the columns."""
        try:
            with open(self.path, "rb") as raw, h5py.File(self.path, "r", locking=False) as file:
                self._file = WatchedFile(raw)
                attributes = _attributes(file, self.path)
                mapping = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
                kinds = {**COLUMNS, "blob": "|u1"}
                data = {name: memmap_dataset(file, name, kind, mapping) for name, kind in kinds.items()}
        except UserError:
            raise
        except FileNotFoundError as error:
            raise MaskError(f"no mask file {self.path}; make it with `hapicl masks build`") from error
        except DAMAGE as error:
            raise MaskError(why_unreadable(self.path, "a mask file", "hapicl masks build", error)) from error
        check_columns(data, self.path)
        if self._file.changed():
            raise MaskError(f"{self.path} is being written to; wait until that is done")
        if self._digest is not None and self._digest != attributes["content_digest"]:
            raise MaskError(f"{self.path} was replaced while it was in use; start again")
        self._digest, self._attributes, self._data = attributes["content_digest"], attributes, data


def _attributes(file: h5py.File, path: str) -> dict[str, Any]:
    """The file's own description, after checking that this code can read it."""
    recorded = {name: file.attrs.get(name) for name in ("format", "version", "content_digest", "blob_digest")}
    if not isinstance(recorded["format"], str) or recorded["format"] != FORMAT:
        raise MaskError(
            f"{path} is an HDF5 file but no mask file of `hapicl masks build`; give the file that it wrote"
        )
    version = recorded["version"]
    if not isinstance(version, int | np.integer) or version != VERSION:
        raise MaskError(
            f"{path} has version {version!r} of the mask format, this program reads {VERSION}; "
            "update hapicl or build the masks again"
        )
    digests = {name: recorded[name] for name in ("content_digest", "blob_digest")}
    if not all(isinstance(digest, str) for digest in digests.values()):
        raise MaskError(f"{path} is damaged: it lacks its digests; build the masks again")
    return {**read_description(file.attrs.get("description"), path), "version": VERSION, **digests}

"""Writing mask files: packing one mask, writing a set of rows, joining files (format: `format.py`)."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...common.atomic_files import atomic_write
from ...common.errors import UserError
from ..path_keys import decode_path, encode_path, is_safe_key
from .format import COLUMNS, FORMAT, MAX_MASK_SIDE, STATUSES, VERSION, MaskStatus, digested_recipe
from .reader import MaskReader

ZLIB_LEVEL = 6  # 256 bytes a mask at 160 pixels; level 9 saves 2 % and takes twice as long
_HDF5_OVERHEAD = 1 << 16  # bytes; headers and attributes take about a quarter of it
_Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class MaskRow:
    """One image's row: its packed mask, or the reason why there is none."""

    path: str
    image_size: tuple[int, int] = (0, 0)
    mask_size: tuple[int, int] = (0, 0)
    packed: bytes = b""  # zlib-compressed bits
    crc32: int = 0  # of the bits before compression
    coverage: float = float("nan")
    confidence: float = float("nan")
    status: MaskStatus = MaskStatus.UNREADABLE
    file_bytes: int = 0
    reason: str = ""


def pack_mask(
    path: str,
    mask: NDArray[np.bool_],
    image_size: tuple[int, int],
    *,
    confidence: float = float("nan"),
    low_confidence: float = 0.0,
    file_bytes: int = 0,
) -> MaskRow:
    """Make the row of one mask.

    Args:
        path: the image, relative to the image root.
        mask: (h, w) bool, at whatever size it is to be stored; sides of at most 4096.
        image_size: (H, W) of the upright image, pixels.
        confidence: of the mask, in [0, 1]; nan where nobody knows (imported masks).
        low_confidence: masks whose confidence is below are flagged.
        file_bytes: size of the image file, by which `--update` sees a changed image.

    Raises:
        UserError: if the mask is not two-dimensional or too large.
    """
    if mask.ndim != 2 or not 0 < min(mask.shape) <= max(mask.shape) <= MAX_MASK_SIDE:
        raise UserError(
            f"{path}: a mask must be (h, w) of 1 to {MAX_MASK_SIDE} pixels a side, not {mask.shape}"
        )
    bits = np.packbits(mask, axis=1).tobytes()
    coverage = float(np.count_nonzero(mask)) / mask.size
    status = MaskStatus.OK
    if coverage in (0.0, 1.0):
        status = MaskStatus.FULL if coverage else MaskStatus.EMPTY
    elif confidence < low_confidence:
        status = MaskStatus.LOW_CONFIDENCE
    return MaskRow(
        path=path,
        image_size=image_size,
        mask_size=(mask.shape[0], mask.shape[1]),
        packed=zlib.compress(bits, ZLIB_LEVEL),
        crc32=zlib.crc32(bits),
        coverage=coverage,
        confidence=confidence,
        status=status,
        file_bytes=file_bytes,
    )


def write_masks(out: str | os.PathLike[str], rows: Sequence[MaskRow], description: Mapping[str, Any]) -> None:
    """Write a mask file of these rows, whole or not at all.

    Args:
        out: the file.
        rows: in any order.
        description: at least `recipe` (every parameter) and `image_root`; JSON-able. Times and library
            versions belong here too; only the recipe enters the content digest.

    Raises:
        UserError: for two rows of one path, a path that leaves the image root, or a file that cannot be
            written.
    """
    keys = [encode_path(row.path) for row in rows]
    unsafe = next((key for key in keys if not is_safe_key(key)), None)
    if unsafe is not None:
        raise UserError(
            f"{decode_path(unsafe)!r} is no path below the image folder; give relative paths without `..`"
        )
    order = sorted(range(len(rows)), key=keys.__getitem__)
    _refuse_twins([keys[at] for at in order])
    rows = [rows[at] for at in order]
    columns: _Columns = {
        "path": _bytes_column([encode_path(row.path) for row in rows]),
        "image_size": np.array([row.image_size for row in rows], "<i4").reshape(-1, 2),
        "mask_size": np.array([row.mask_size for row in rows], "<u2").reshape(-1, 2),
        "offset": np.cumsum([0] + [len(row.packed) for row in rows]).astype("<i8"),
        "status": np.array([STATUSES.index(row.status) for row in rows], "|u1"),
        "reason_row": np.array([at for at, row in enumerate(rows) if row.reason], "<i8"),
        "reason": _bytes_column([encode_path(row.reason) for row in rows if row.reason]),
    }
    for name in ("coverage", "confidence", "crc32", "file_bytes"):
        columns[name] = np.array([getattr(row, name) for row in rows], COLUMNS[name])
    _write(out, columns, (np.frombuffer(row.packed, np.uint8) for row in rows), description)


def join_masks(
    out: str | os.PathLike[str],
    sources: Sequence[MaskReader],
    description: Mapping[str, Any],
    *,
    keep: Sequence[NDArray[np.bool_]] | None = None,
) -> int:
    """Join mask files row by row into one, sorted; the masks are copied as they are, never all in memory.

    Args:
        out: the file to write; may be one of the sources, which is replaced at the end.
        sources: files with disjoint paths; rows that are the same in two sources are taken once.
        description: as for `write_masks`.
        keep: (N,) bool for each source, the rows to take; all by default.

    Returns:
        Rows written.

    Raises:
        UserError: if two sources disagree on an image, or the file cannot be written.
    """
    masks = keep if keep is not None else [np.ones(len(source), bool) for source in sources]
    taken = [np.flatnonzero(mask) for mask in masks]
    origin = np.repeat(np.arange(len(sources)), [len(rows) for rows in taken])
    row = np.concatenate([*taken, np.empty(0, np.int64)])
    keys = _gather([source.column("path") for source in sources], taken, "S1")
    order = np.argsort(keys, kind="stable")
    order = order[_first_of_twins(keys[order], origin[order], row[order], sources)]
    origin, row = origin[order], row[order]
    columns: _Columns = {"path": _bytes_column(keys[order].tolist())}
    for name in ("image_size", "mask_size", "coverage", "confidence", "status", "crc32", "file_bytes"):
        shape = (0, 2) if name.endswith("_size") else (0,)
        columns[name] = _gather([source.column(name) for source in sources], taken, COLUMNS[name], shape)[
            order
        ]
    lengths = _gather([np.diff(source.column("offset")) for source in sources], taken, "<i8")[order]
    columns["offset"] = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
    reasons = _joined_reasons(sources, origin, row)
    columns["reason_row"] = np.array([at for at, _ in reasons], "<i8")
    columns["reason"] = _bytes_column([reason for _, reason in reasons])
    _write(out, columns, _runs(sources, origin, row), description)
    return len(row)


def content_digest(columns: Mapping[str, NDArray[Any]], recipe: Mapping[str, Any]) -> str:
    """Digest of what the masks are: rows, bits (by crc32) and recipe; not of times, places or compression."""
    parameters = json.dumps(digested_recipe(recipe), sort_keys=True)
    digest = hashlib.blake2b(parameters.encode(), digest_size=16)
    for name in COLUMNS:
        if name != "offset":  # depends on the zlib in use
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(columns[name]).data if columns[name].size else b"")
    return digest.hexdigest()


def blob_digest(pieces: Iterable[NDArray[np.uint8]]) -> str:
    """Digest of the stored, compressed masks."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece.data)
    return digest.hexdigest()


def _write(
    out: str | os.PathLike[str],
    columns: _Columns,
    pieces: Iterable[NDArray[np.uint8]],
    description: Mapping[str, Any],
) -> None:
    """Write columns and the masks' bytes; the pieces are gathered to megabytes before each HDF5 call."""
    digest = hashlib.blake2b(digest_size=16)
    with atomic_write(out) as part, _spacious(part, columns) as file:
        for name in COLUMNS:  # always in this order: equal content, equal bytes
            file.create_dataset(name, data=columns[name])
        blob = file.create_dataset("blob", shape=(int(columns["offset"][-1]),), dtype="|u1")
        at = 0
        for chunk in _chunks(pieces):
            blob[at : at + len(chunk)] = chunk
            at += len(chunk)
            digest.update(chunk.data)
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["description"] = json.dumps(dict(description), sort_keys=True)
        file.attrs["content_digest"] = content_digest(columns, description["recipe"])
        file.attrs["blob_digest"] = digest.hexdigest()


def _spacious(part: Path, columns: _Columns) -> h5py.File:
    """Open a new HDF5 file once the disk is known to hold it.

    HDF5 crashes the process when the disk fills up under it; the kernel, asked first, answers with an error.

    Raises:
        OSError: if there is no space.
    """
    size = sum(values.nbytes for values in columns.values()) + int(columns["offset"][-1]) + _HDF5_OVERHEAD
    with open(part, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return h5py.File(part, "w", libver=("earliest", "v110"))


def _chunks(pieces: Iterable[NDArray[np.uint8]], least: int = 1 << 22) -> Iterator[NDArray[np.uint8]]:
    """Gather small pieces to arrays of at least `least` bytes (the last may be shorter)."""
    waiting: list[NDArray[np.uint8]] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= least:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if size:
        yield np.concatenate(waiting)


def _bytes_column(values: Sequence[bytes]) -> NDArray[np.bytes_]:
    """Byte strings at their longest width, so that equal content has equal bytes."""
    return np.array(values, f"S{max((len(value) for value in values), default=1) or 1}")


def _gather(
    columns: Sequence[NDArray[Any]],
    taken: Sequence[NDArray[np.int64]],
    dtype: str,
    shape: tuple[int, ...] = (0,),
) -> NDArray[Any]:
    """One column's taken rows of all sources, in order of the sources."""
    return np.concatenate(
        [np.empty(shape, dtype), *(column[rows] for column, rows in zip(columns, taken, strict=True))]
    )


def _refuse_twins(keys: Sequence[bytes]) -> None:
    """Raise for two equal neighbours among sorted keys."""
    twin = next((first for first, second in itertools.pairwise(keys) if first == second), None)
    if twin is not None:
        raise UserError(f"two masks for {decode_path(twin)!r}; give each image once")


def _first_of_twins(
    keys: NDArray[np.bytes_], origin: NDArray[np.int64], row: NDArray[np.int64], sources: Sequence[MaskReader]
) -> NDArray[np.bool_]:
    """Which of the sorted rows to take: of equal rows the first; rows that differ are refused."""
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    for at in np.flatnonzero(~first):
        one, two = sources[origin[at - 1]], sources[origin[at]]
        for name in ("crc32", "image_size", "mask_size", "status"):
            if not np.array_equal(one.column(name)[row[at - 1]], two.column(name)[row[at]]):
                raise UserError(
                    f"{one.path} and {two.path} disagree on {decode_path(bytes(keys[at]))!r} ({name}); "
                    "leave one of them out"
                )
    return first


def _joined_reasons(
    sources: Sequence[MaskReader], origin: NDArray[np.int64], row: NDArray[np.int64]
) -> list[tuple[int, bytes]]:
    """(row in the joined file, reason) of every row that has one."""
    found = []
    for index, source in enumerate(sources):
        reasons = dict(
            zip(source.column("reason_row").tolist(), source.column("reason").tolist(), strict=True)
        )
        mine = np.flatnonzero(origin == index) if reasons else np.empty(0, np.int64)
        found += [(int(at), reasons[int(row[at])]) for at in mine if int(row[at]) in reasons]
    return sorted(found)


def _runs(
    sources: Sequence[MaskReader], origin: NDArray[np.int64], row: NDArray[np.int64]
) -> Iterator[NDArray[np.uint8]]:
    """The masks' bytes in the joined order, in slices as long as neighbouring rows allow."""
    breaks = np.flatnonzero((np.diff(origin) != 0) | (np.diff(row) != 1)) + 1
    starts, stops = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(row)]])
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if start < stop:
            source = sources[origin[start]]
            offset = source.column("offset")
            yield from source.blob_pieces(int(offset[row[start]]), int(offset[row[stop - 1] + 1]))

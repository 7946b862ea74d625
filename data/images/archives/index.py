"""Where every image lies in a set of archives: sorted columns on a memory map, kept in the user's cache.

An archive is walked once. The index is named by the archives' paths, sizes and times of change, so a changed
archive gets a new one, and worker processes and later runs find the old one ready.

    /path (N,) bytes, sorted      /archive (N,) uint32, number of the archive in the attribute `archives`
    /kind (N,) uint8              /offset, /stored, /size (N,) int64      /crc32 (N,) uint32

Shape legend: N images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ....common.atomic_files import atomic_write
from ....common.errors import UserError
from ...memmap import DAMAGE, memmap_dataset
from ...path_keys import encode_path
from ..kinds import HEAD_BYTES, is_listed, is_sure, readable_suffixes, why_left_out
from .members import PLAIN, Member, members

COLUMNS = {
    "path": "S",
    "archive": "<u4",
    "kind": "|u1",
    "offset": "<i8",
    "stored": "<i8",
    "size": "<i8",
    "crc32": "<u4",
}
LARGE_BYTES = 4 << 30  # archives that take a while to walk
_VERSION = 1
logger = logging.getLogger("hapicl.data")

Identity = tuple[str, int, int]  # an archive's path, size in bytes, and time of change in nanoseconds


@dataclass(frozen=True)
class Index:
    """The images of some archives.

    Attributes:
        archives: what each was when it was walked.
        columns: those of `COLUMNS`.
    """

    archives: tuple[Identity, ...]
    columns: dict[str, NDArray[Any]]


def identities(archives: Sequence[Path]) -> tuple[Identity, ...]:
    """Say what some archives are now.

    Raises:
        UserError: if one is gone.
    """
    found = []
    for path in archives:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"cannot read the archive {path}: {error.strerror}") from error
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


def open_index(archives: tuple[Identity, ...], names: Sequence[str]) -> Index:
    """Open the index of some archives; makes it where there is none.

    Args:
        archives: see `identities`.
        names: what each is called where an image's name alone does not do; see `_keys`.

    Raises:
        UserError: if an archive is damaged or compressed.
    """
    words = json.dumps([_VERSION, archives, list(names), readable_suffixes()])
    digest = hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    place = cache_folder("archives") / f"{digest}.h5"
    columns = _read(place)
    if columns is None:
        columns = _walk(archives, names)
        try:
            _write(place, columns)
        except UserError as error:
            logger.warning("%s; every process walks the archives anew", error)
        else:
            columns = _read(place) or columns
    return Index(archives, columns)


def cache_folder(name: str) -> Path:
    """A folder of the user's cache: below `XDG_CACHE_HOME`, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hapicl" / name


def _walk(archives: Sequence[Identity], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Find the images of all archives, sorted by key."""
    total = sum(size for _, size, _ in archives)
    if total > LARGE_BYTES:
        logger.warning("looking through %d archives (%.0f GiB), once", len(archives), total / 2**30)
    found: list[dict[str, Member]] = []  # of each archive, by name: of two of one name the later is unpacked
    left_out: Counter[str] = Counter()
    for path, *_ in archives:
        found.append({})
        for member in members(Path(path)):
            suffix = _suffix(member.name)
            if any(part.startswith(".") for part in member.name.split("/")):
                continue
            if is_listed(suffix) or (not suffix and _looks_like_an_image(path, member)):
                found[-1][member.name] = member
            elif why_left_out(suffix):
                left_out[suffix] += 1
    for suffix, count in sorted(left_out.items()):
        logger.warning("%d %s images are left out of the archives: %s", count, suffix, why_left_out(suffix))
    keys = _keys(found, names)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = [(number, member) for number, inside in enumerate(found) for member in inside.values()]
    chosen = [rows[at] for at in order]
    columns: dict[str, NDArray[Any]] = {
        "path": np.array([keys[at] for at in order] or [b""], np.bytes_)[: len(order)],
        "archive": np.array([number for number, _ in chosen], "<u4"),
    }
    for name in ("kind", "offset", "stored", "size", "crc32"):
        columns[name] = np.array([getattr(member, name) for _, member in chosen], COLUMNS[name])
    return columns


def _keys(found: Sequence[dict[str, Member]], names: Sequence[str]) -> list[bytes]:
    """What images are called: by their names in the archive, as where that is unpacked.

    Where a name is there in two archives, every image is called by its archive as well.
    """
    amounts = Counter(name for inside in found for name in inside)
    twice = next((name for name, count in amounts.items() if count > 1), None)
    if twice is None:
        return [encode_path(name) for inside in found for name in inside]
    logger.warning(
        "%s is in more than one archive, so every image is called by its archive too: %s/%s",
        *(twice, next(name for name, inside in zip(names, found, strict=True) if twice in inside), twice),
    )
    return [
        encode_path(f"{archive}/{name}")
        for archive, inside in zip(names, found, strict=True)
        for name in inside
    ]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path for each of a million names is slow)


def _looks_like_an_image(archive: str, member: Member) -> bool:
    """Whether a file without a suffix begins as an image does; one that is deflated is not looked into."""
    if member.kind != PLAIN:
        return False
    with open(archive, "rb") as file:
        file.seek(member.offset)
        return is_sure(file.read(min(HEAD_BYTES, member.size)))


def _write(place: Path, columns: dict[str, NDArray[Any]]) -> None:
    """Keep an index for other processes and later runs."""
    with atomic_write(place) as part, h5py.File(part, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values)


def _read(place: Path) -> dict[str, NDArray[Any]] | None:
    """Map a kept index; None where there is none that can be used."""
    try:
        with open(place, "rb") as raw, h5py.File(place, "r", locking=False) as file:
            mapping = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
            columns = {name: memmap_dataset(file, name, kind, mapping) for name, kind in COLUMNS.items()}
    except DAMAGE:
        return None
    return columns if len({len(values) for values in columns.values()}) == 1 else None

"""What lies where in an archive: the members of a tar or zip file, without their bytes.

Tar files are walked header by header with `tarfile`; of a zip file `zipfile` reads the directory at its end.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ....common.errors import UserError

# how a member's bytes are kept; the last two are members that are named and cannot be read
PLAIN, ZIP, LINK, OTHER = 0, 1, 2, 3
WHY_NOT = {
    LINK: "a link to what is not in the archive",
    OTHER: "its bytes are kept in a way that allows no direct reading (sparse or encrypted)",
}
SUFFIXES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".7z", ".rar")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")
_UTF8_FLAG, _ENCRYPTED = 0x800, 0x1
_BLOCK = 512  # bytes of a tar header


class Member(NamedTuple):
    """One file in an archive.

    Attributes:
        name: relative, with forward slashes, as it would be unpacked.
        kind: `PLAIN` (its bytes as they are), `ZIP` (a local header first), or why it cannot be read.
        offset: of the bytes, or of the local header, from the archive's beginning.
        stored: bytes it takes there, without that header.
        size: bytes of the file.
        crc32: of the file, where the archive keeps it.
    """

    name: str
    kind: int
    offset: int = 0
    stored: int = 0
    size: int = 0
    crc32: int = 0


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of an archive, read here or not."""
    return os.fspath(path).lower().endswith(SUFFIXES + COMPRESSED)


def members(path: Path) -> Iterator[Member]:
    """Give the files of an archive; of two of one name the later one is what would be unpacked.

    Raises:
        UserError: if it is compressed as a whole, damaged, or cannot be read; names it.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
        if head.startswith(_MAGIC) or path.name.lower().endswith(COMPRESSED):
            raise UserError(
                f"{path} is compressed as a whole, so that no image can be read without all before it; "
                "unpack it, or make a plain .tar or a .zip of it (photographs do not become smaller)"
            )
        yield from _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path)
    except OSError as error:
        raise UserError(f"cannot read the archive {path}: {error.strerror or error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged, or no archive: {error}; copy it again") from error


def _tar_members(path: Path) -> Iterator[Member]:
    """Walk a tar file."""
    places: dict[str, Member] = {}
    links: list[tuple[str, str]] = []  # names, and the names in the archive that they lead to
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        for entry in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps every entry
            name = _relative(entry.name)
            if entry.islnk():
                links.append((name, _relative(entry.linkname)))
            elif entry.issym():
                links.append((name, posixpath.normpath(f"{posixpath.dirname(name)}/{entry.linkname}")))
            elif entry.isreg():
                plain = entry.sparse is None
                place = (PLAIN, entry.offset_data, entry.size, entry.size) if plain else (OTHER,)
                places[name] = Member(name, *place)
        end = archive.offset
    with open(path, "rb") as file:  # tarfile takes a damaged header for the end
        file.seek(end)
        block = file.read(_BLOCK)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no file header at byte {end}")
    yield from places.values()
    for name, target in links:
        yield places.get(target.lstrip("/"), Member(name, LINK))._replace(name=name)


def _zip_members(path: Path) -> Iterator[Member]:
    """Read a zip file's directory."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            name = _relative(_zip_name(entry).replace("\\", "/"))
            if entry.flag_bits & _ENCRYPTED:
                yield Member(name, OTHER)
            else:
                place = entry.header_offset, entry.compress_size, entry.file_size, entry.CRC
                yield Member(name, ZIP, *place)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """A member's name; many programs write UTF-8 without the flag that says so."""
    if entry.flag_bits & _UTF8_FLAG:
        return entry.filename
    raw = entry.filename.encode("cp437")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return entry.filename


def _relative(name: str) -> str:
    """A name as it would be unpacked: below a folder.

    Raises:
        ValueError: for one that leads out of it.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"it names a file outside itself, {name!r}")
    return "/".join(parts)

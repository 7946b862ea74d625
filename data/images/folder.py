"""A folder of image files: which images it holds, and their bytes."""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...common.errors import UserError
from .decode import ImageError, image_size, read_bytes, read_header
from .kinds import HEAD_BYTES, is_listed, is_sure, why_left_out
from .store import Encoded, location_of

# the file is there but this user, or anyone, may not read it; anything else means that the folder went away
_OWN_FAULT = frozenset((errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG))
logger = logging.getLogger("hapicl.data")
_told: set[tuple[str, tuple[tuple[str, int], ...]]] = set()  # what this process has said was left out


@dataclass
class _Walk:
    """What has been met under a folder."""

    root: Path
    found: list[str] = field(default_factory=list)  # images
    links: list[str] = field(default_factory=list)  # linked folders that wait
    seen: set[tuple[int, int]] = field(default_factory=set)  # folders, by device and inode
    left_out: Counter[str] = field(default_factory=Counter)  # images that cannot be read here, by suffix


def find_images(root: str | os.PathLike[str]) -> list[str]:
    """List the images under a folder, flat or nested to any depth.

    A file counts by its suffix, and one without a suffix by its first bytes. Linked files count; a linked
    folder is followed unless it was already walked, so loops end. Hidden names (a leading dot) are left out.
    Images of kinds that cannot be read here (HEIC without its library, raw files) are left out, and a
    warning counts them. What cannot be read is listed so that it can be reported: a broken link, a
    link to itself, a folder (by its own name) that this user may not open.

    Args:
        root: the image folder.

    Returns:
        Paths relative to `root`, with forward slashes, sorted by their bytes.

    Raises:
        UserError: if `root` is missing or cannot be read, or a folder in it vanishes meanwhile.
    """
    walk = _Walk(Path(root))
    waiting = [""]
    while waiting:  # real folders first, then the links met on the way, so that a link never hides its target
        walk.links = []
        for folder in sorted(waiting):
            _walk(walk, folder)
        waiting = walk.links
    _tell(walk)
    return sorted(walk.found, key=os.fsencode)


def _walk(walk: _Walk, folder: str) -> None:
    """Add what is under one folder."""
    stack = [folder]
    while stack:
        relative = stack.pop()
        try:
            status = (walk.root / relative).stat()
            if (status.st_dev, status.st_ino) in walk.seen:
                continue
            walk.seen.add((status.st_dev, status.st_ino))
            with os.scandir(walk.root / relative) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{relative}/{entry.name}" if relative else entry.name
                    if _is_folder(entry):
                        (walk.links if entry.is_symlink() else stack).append(path)
                    else:
                        _add_file(walk, entry, path)
        except OSError as error:
            if relative and isinstance(error, PermissionError):
                walk.found.append(relative)
                continue
            raise UserError(
                f"cannot read the image folder {walk.root / relative}: {error.strerror}; give a readable "
                "folder"
            ) from error


def _add_file(walk: _Walk, entry: os.DirEntry[str], path: str) -> None:
    """Take a file where it is an image, count it where it is one that cannot be read."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a Path per file is slow)
    if is_listed(suffix) or (not suffix and _looks_like_an_image(entry)):
        walk.found.append(path)
    elif why_left_out(suffix):
        walk.left_out[suffix] += 1


def _looks_like_an_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file without a suffix begins as an image does."""
    try:
        if not entry.is_file():  # opening a named pipe would wait for a writer
            return False
        with open(entry.path, "rb") as file:
            return is_sure(file.read(HEAD_BYTES))
    except OSError:
        return False


def _tell(walk: _Walk) -> None:
    """Warn of images that were left out, once for each folder and count."""
    key = (str(walk.root), tuple(sorted(walk.left_out.items())))
    if not walk.left_out or key in _told:
        return
    _told.add(key)
    kinds = ", ".join(f"{count} {suffix} ({why_left_out(suffix)})" for suffix, count in key[1])
    logger.warning("%s: images left out, because this installation cannot read them: %s", walk.root, kinds)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link to itself does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class Folder:
    """Images as files under a root."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Take the root as it is; nothing is read yet."""
        self.root = Path(root)

    @property
    def location(self) -> str:
        """The folder's absolute path."""
        return location_of(self.root)

    def paths(self) -> list[str]:
        """Walk the folder."""
        return find_images(self.root)

    def read_bytes(self, path: str) -> bytes:
        """Read one listed file whole.

        Raises:
            ImageError: if this one file cannot be read.
            UserError: if it is gone, as after the loss of a network folder.
        """
        file = self.root / path
        try:
            return read_bytes(file)
        except OSError as error:
            broken_link = file.is_symlink() and self.root.is_dir()
            if error.errno in _OWN_FAULT or broken_link:
                what = "a folder that cannot be read" if file.is_dir() else "cannot be read"
                raise ImageError(path, f"{what}: {error.strerror}") from error
            raise UserError(f"{file} was listed but cannot be read any more ({error.strerror})") from error

    def file_bytes(self, path: str) -> int:
        """Size of a file, bytes; 0 for a broken link, or in a folder that this user may not look into."""
        try:
            return os.stat(f"{self.root}/{path}").st_size  # noqa: PTH116 (a Path for each of a million is slow)
        except OSError:
            return 0

    def image_size(self, path: str) -> tuple[int, int]:
        """Height and width in pixels, from the file's first bytes."""
        return image_size(self.root / path)

    def read(self, path: str) -> Encoded:
        """Read one file whole."""
        try:
            data = read_bytes(f"{self.root}/{path}")  # joined as text: a Path costs more
        except OSError as error:
            raise ImageError(path, f"cannot be read: {error.strerror or error}") from error
        header = read_header(data, path)
        return Encoded(data, header.size, header)

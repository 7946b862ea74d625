"""A folder of image files: which images it holds, and their bytes."""

from __future__ import annotations

import os
from pathlib import Path

from ...common.errors import UserError
from .decode import ImageError, read_bytes, read_header
from .store import Encoded

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)


def find_images(root: str | os.PathLike[str]) -> list[str]:
    """List the images under a folder, flat or nested to any depth.

    Linked files count; a linked folder is followed unless it was already walked, so loops end. Hidden names
    (a leading dot) are left out. What cannot be read is listed so that it can be reported: a broken link, a
    link to itself, a folder (by its own name) that this user may not open.

    Args:
        root: the image folder.

    Returns:
        Paths relative to `root`, with forward slashes, sorted by their bytes.

    Raises:
        UserError: if `root` is missing or cannot be read, or a folder in it vanishes meanwhile.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:  # real folders first, then the links met on the way, so that a link never hides its target
        links: list[str] = []
        for folder in sorted(waiting):
            _walk(Path(root), folder, found, links, seen)
        waiting = links
    return sorted(found, key=os.fsencode)


def _walk(root: Path, folder: str, found: list[str], links: list[str], seen: set[tuple[int, int]]) -> None:
    """Add the images under one folder to `found` and its linked folders to `links`."""
    stack = [folder]
    while stack:
        relative = stack.pop()
        try:
            status = (root / relative).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / relative) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{relative}/{entry.name}" if relative else entry.name
                    if _is_folder(entry):
                        (links if entry.is_symlink() else stack).append(path)
                    elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 (a Path per file is slow)
                        found.append(path)
        except OSError as error:
            if relative and isinstance(error, PermissionError):
                found.append(relative)
                continue
            raise UserError(
                f"cannot read the image folder {root / relative}: {error.strerror}; give a readable folder"
            ) from error


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

    def paths(self) -> list[str]:
        """Walk the folder."""
        return find_images(self.root)

    def read(self, path: str) -> Encoded:
        """Read one file whole."""
        try:
            data = read_bytes(f"{self.root}/{path}")  # joined as text: a Path costs more
        except OSError as error:
            raise ImageError(path, f"cannot be read: {error.strerror or error}") from error
        header = read_header(data, path)
        return Encoded(data, header.size, header)

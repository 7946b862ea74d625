"""Where the loader's images come from: a folder of files, or a packed file of the same images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Protocol

from . import images
from .errors import UserError
from .images import ImageError


class Encoded(NamedTuple):
    """An encoded image, the (height, width) of the upright original it shows, its header if it was read."""

    data: bytes
    image_size: tuple[int, int]
    header: images.Header | None = None


class ImageStore(Protocol):
    """Images by path. Stores are sent to worker processes, so they keep no open handle when pickled."""

    def paths(self) -> list[str]:
        """All paths, relative, with forward slashes, sorted."""

    def read(self, path: str) -> Encoded:
        """Read one image.

        Raises:
            ImageError: if it cannot be read; names the path and the reason.
        """


class Folder:
    """Images as files under a root."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Take the root as it is; nothing is read yet."""
        self.root = Path(root)

    def paths(self) -> list[str]:
        """Walk the folder."""
        return images.find_images(self.root)

    def read(self, path: str) -> Encoded:
        """Read one file whole."""
        try:
            data = images.read_bytes(f"{self.root}/{path}")  # joined as text: a Path costs more
        except OSError as error:
            raise ImageError(path, f"cannot be read: {error.strerror or error}") from error
        header = images.read_header(data, path)
        return Encoded(data, header.size, header)


def open_images(source: str | os.PathLike[str]) -> ImageStore:
    """Open a folder of images, or a file made by `hapicl data pack`.

    Raises:
        UserError: if there is neither; says what to give.
    """
    path = Path(source)
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        from .imagepack import ImagePack

        return ImagePack(path)
    raise UserError(f"no images at {path}: give a folder of images, or a file made by `hapicl data pack`")

"""Images: a folder of files or one packed file, and their pixels, always upright and always RGB."""

from __future__ import annotations

import os
from pathlib import Path

from ...common.errors import UserError
from .folder import Folder
from .store import ImageStore


def open_images(source: str | os.PathLike[str]) -> ImageStore:
    """Open a folder of images, or a file made by `hapicl data pack`.

    Raises:
        UserError: if there is neither; says what to give.
    """
    path = Path(source)
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        from .pack import ImagePack

        return ImagePack(path)
    raise UserError(f"no images at {path}: give a folder of images, or a file made by `hapicl data pack`")

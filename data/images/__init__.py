"""Images in folders, archives, object stores or a packed file, and their pixels, always upright and RGB."""

from __future__ import annotations

import os
from glob import glob, has_magic
from pathlib import Path

from ...common.errors import UserError
from .archives.members import is_archive
from .folder import Folder
from .kinds import is_listed
from .store import ImageStore, OriginalImages, is_url, location_of


def open_images(source: str | os.PathLike[str]) -> ImageStore:
    """Open images to train on: all that `open_originals` opens, or a file made by `hapicl data pack`.

    Raises:
        UserError: if there is nothing of the kind; says what to give.
    """
    path = Path(source)
    if not is_url(source) and path.is_file() and not is_archive(path):
        from .pack import ImagePack

        return ImagePack(path)
    if not is_url(source) and not path.exists() and not has_magic(os.fspath(source)):
        raise UserError(
            f"no images at {path}: give a folder of images, tar or zip archives, or a file made by "
            "`hapicl data pack`"
        )
    return open_originals(source)


def open_originals(source: str | os.PathLike[str]) -> OriginalImages:
    """Open images as they were taken, from which masks can be made.

    Args:
        source: a folder of images; a .tar or .zip file, a folder of such files, or a pattern such as
            `shards/*.tar`; or the URL of any of these. Images in archives are called as in the unpacked
            folder.

    Raises:
        UserError: for a pattern that fits nothing, or a file that is no archive. Whether a folder is there
            and holds images, and whether archives are whole, is told by `paths()`.
    """
    if is_url(source):
        from .remote import open_remote

        return open_remote(os.fspath(source))
    path = Path(source)
    if path.is_dir():
        archives = _archives_of(path)
    elif path.exists() or not has_magic(os.fspath(source)):
        archives = [path] if is_archive(path) and path.exists() else []
    else:
        archives = _of_pattern(os.fspath(source))
    if archives:
        from .archives.store import ArchiveStore

        return ArchiveStore(location_of(source), [archive.resolve() for archive in archives])
    if path.is_file():
        raise UserError(
            f"{path} is no archive of images; masks are made from the images themselves: give their folder, "
            "or a .tar or .zip file"
        )
    return Folder(location_of(path))  # absolute: a worker of a cluster is started elsewhere


def _archives_of(folder: Path) -> list[Path]:
    """The archives of a folder that holds nothing else to be taken for images; none in a folder of images."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() or is_listed(os.path.splitext(entry.name)[1].lower()):  # noqa: PTH122
                    return []
                if is_archive(entry.name):
                    found.append(Path(entry.path))
    except OSError:  # told by whoever walks it
        return []
    return sorted(found, key=os.fsencode)


def _of_pattern(pattern: str) -> list[Path]:
    """The archives that a pattern fits.

    Raises:
        UserError: if there is none, or something else.
    """
    found = sorted(map(Path, glob(pattern)), key=os.fsencode)  # noqa: PTH207 (Path has none for absolute ones)
    other = next((path for path in found if not is_archive(path)), None)
    if other is not None or not found:
        what = f"{other} fits it and is no archive" if found else "no file fits it"
        raise UserError(f"{pattern}: {what}; give a pattern of .tar or .zip files, in quotes")
    return found

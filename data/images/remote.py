"""Images in object stores and on servers, by fsspec's URLs: `s3://bucket/photos`, `gs://bucket/shards/*.tar`.

fsspec lists and fetches; which package serves a protocol, and where it finds its keys, is that package's
affair (s3fs, gcsfs, adlfs; fsspec's own configuration files and variables). Every file is fetched once,
whole, into the user's cache, and read from there: single images as they are needed, archives at the start.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...common.atomic_files import atomic_write
from ...common.errors import UserError
from ..path_keys import encode_path, is_safe_key
from .archives.index import cache_folder
from .archives.members import is_archive
from .archives.store import ArchiveStore
from .decode import ImageError, image_size, read_bytes, read_header
from .kinds import is_listed
from .store import Encoded, OriginalImages

_PATTERN = "*"  # a question mark is part of many a URL
# errors of the libraries behind fsspec that are none of the system's
_FOREIGN = (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"),
            ("botocore.exceptions", "ClientError"), ("gcsfs.retry", "HttpError"))  # fmt: skip


def open_remote(url: str) -> OriginalImages:
    """Open images by a URL: a folder of images, an archive, a folder of archives, or a pattern of them.

    Raises:
        UserError: if fsspec or the protocol's package is missing, or there is nothing.
    """
    place = _Place(url)
    with place.reached():
        files, root = place.listed()
    if not files:
        raise UserError(f"no files at {url}; give a folder of images, an archive, or a pattern such as *.tar")
    archives = [name for name in files if is_archive(name)]
    if _PATTERN in url and len(archives) < len(files):
        raise UserError(f"{url} fits files that are no archives; give a pattern such as *.tar")
    flat = not any("/" in name or is_listed(_suffix(name)) for name in files)
    if archives and (flat or _PATTERN in url):
        fetched = [place.fetch(f"{root}{name}", files[name]) for name in sorted(archives)]
        names = [posixpath.splitext(name)[0] for name in sorted(archives)]
        return ArchiveStore(url, fetched, names)
    return RemoteFolder(url)


class RemoteFolder:
    """Images below a URL, one object each."""

    def __init__(self, url: str) -> None:
        """Take the URL as it is; nothing is asked yet."""
        self._place = _Place(url)
        self._files: dict[str, int] | None = None  # name -> bytes
        self._root = ""

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteFolder, (self.location,)

    @property
    def location(self) -> str:
        """The URL."""
        return self._place.url

    def paths(self) -> list[str]:
        """List the images by their suffixes; hidden ones (a leading dot) are left out."""
        return sorted((name for name in self._listing() if _is_image(name)), key=encode_path)

    def file_bytes(self, path: str) -> int:
        """Size of an object, bytes."""
        return self._listing().get(path, 0)

    def read_bytes(self, path: str) -> bytes:
        """Read one image whole, fetching it at the first time."""
        try:
            return read_bytes(self._fetched(path))
        except OSError as error:
            raise ImageError(path, f"cannot be read: {error.strerror or error}") from error

    def read(self, path: str) -> Encoded:
        """Read one image and its header."""
        data = self.read_bytes(path)
        header = read_header(data, path)
        return Encoded(data, header.size, header)

    def image_size(self, path: str) -> tuple[int, int]:
        """Height and width in pixels."""
        return image_size(self._fetched(path))

    def _fetched(self, path: str) -> Path:
        files = self._listing()
        if path not in files:
            raise ImageError(path, f"not at {self.location} any more")
        return self._place.fetch(f"{self._root}{path}", files[path])

    def _listing(self) -> dict[str, int]:
        """What is there, asked once in each process."""
        if self._files is None:
            with self._place.reached():
                self._files, self._root = self._place.listed()
        return self._files


class _Place:
    """A URL, and fsspec's connection to it; each process makes its own, since none lives through a fork."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._process = 0
        self._system: Any = None
        self._path = ""

    def listed(self) -> tuple[dict[str, int], str]:
        """Names below the URL with their sizes in bytes, and what stands before each name in the store."""
        system = self._connected()
        if _PATTERN in self._path:
            found = system.glob(self._path, detail=True)
            root = posixpath.dirname(self._path.partition(_PATTERN)[0]) + "/"
        elif system.isfile(self._path):
            found = {self._path: system.info(self._path)}
            root = posixpath.dirname(self._path) + "/"
        else:
            found = system.find(self._path, detail=True)
            root = self._path.rstrip("/") + "/"
        files = {name: entry for name, entry in found.items() if entry["type"] == "file"}
        return {name.removeprefix(root): int(entry["size"] or 0) for name, entry in files.items()}, root

    def fetch(self, name: str, size: int) -> Path:
        """The local copy of a file, made at the first time; whole, whoever else fetches it now.

        Raises:
            UserError: if the store cannot be reached, or the copy not be written.
        """
        digest = hashlib.sha256(f"{self.url}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()
        copy = cache_folder("remote") / digest[:2] / f"{digest[2:34]}{_suffix(name)}"
        if copy.exists() and size in (0, copy.stat().st_size):  # some servers tell no size
            return copy
        with atomic_write(copy) as part, self.reached():
            self._connected().get_file(name, str(part))
        return copy

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn what goes wrong on the way into one line.

        Raises:
            UserError: names the URL; an image is never recorded as unreadable because of it.
        """
        try:
            yield
        except _lost_connections() as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self.url} cannot be read now: {reason}; put that right and give the same command again"
            ) from error

    def _connected(self) -> Any:
        """Fsspec's file system, made anew after a fork.

        Raises:
            UserError: if fsspec, or the package for the protocol, is not installed.
        """
        if self._process == os.getpid():
            return self._system
        try:
            from fsspec.core import url_to_fs

            self._system, self._path = url_to_fs(self.url)
        except ImportError as error:
            raise UserError(f"{self.url}: {error}; pip install 'hapicl[remote]' brings fsspec") from error
        except ValueError as error:
            raise UserError(f"{self.url}: {error}") from error
        self._process = os.getpid()
        return self._system


def _lost_connections() -> tuple[type[Exception], ...]:
    """The system's errors, and those of `_FOREIGN` whose library is in use."""
    foreign = (getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN)
    return OSError, *(kind for kind in foreign if kind is not None)


def _is_image(name: str) -> bool:
    """Whether a name below the URL is that of an image, and one that may be joined to a folder."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return is_listed(_suffix(name)) and not hidden and is_safe_key(encode_path(name))


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()

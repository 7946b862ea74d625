"""What a source of images offers: paths, and encoded bytes by path."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple, Protocol

from ...common.types import Pixels
from .decode import Header, Reader, decode_image

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:\ is a disk


class Encoded(NamedTuple):
    """An encoded image, the (height, width) of the upright original it shows, its header if it was read."""

    data: bytes
    image_size: tuple[int, int]
    header: Header | None = None


class ImageStore(Protocol):
    """Images by path. Stores are sent to worker processes, so they keep no open handle when pickled."""

    @property
    def location(self) -> str:
        """What `open_images` opens again; a mask file records it as its image root."""

    def paths(self) -> list[str]:
        """All paths, relative, with forward slashes, sorted."""

    def read(self, path: str) -> Encoded:
        """Read one image.

        Raises:
            ImageError: if it cannot be read; names the path and the reason.
        """


class OriginalImages(ImageStore, Protocol):
    """Images as they were taken, from which masks are made: a folder, archives, an object store."""

    def read_bytes(self, path: str) -> bytes:
        """Read one listed image whole.

        Raises:
            ImageError: if this one cannot be read.
            UserError: if the images as a whole have gone away since they were listed.
        """

    def file_bytes(self, path: str) -> int:
        """Size of an image's file, bytes; 0 where it cannot be asked."""

    def image_size(self, path: str) -> tuple[int, int]:
        """Height and width of the upright image in pixels, from its header.

        Raises:
            ImageError, UserError: as `read_bytes`.
        """


def read_pixels(
    images: ImageStore, path: str, *, reduce_to: int | None = None, reader: Reader | None = None
) -> Pixels:
    """Read and decode one image; see `decode.decode_image`.

    Raises:
        ImageError: if it cannot be read or decoded.
    """
    encoded = images.read(path)
    return decode_image(encoded.data, path, reduce_to=reduce_to, header=encoded.header, reader=reader)


def is_url(source: str | os.PathLike[str]) -> bool:
    """Whether a place is named by a URL."""
    return isinstance(source, str) and _URL.match(source) is not None


def location_of(source: str | os.PathLike[str]) -> str:
    """The name by which a place is recorded: a URL as it is, else the absolute path."""
    return str(source) if is_url(source) else str(Path(source).resolve())

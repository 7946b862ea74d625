"""What a source of images offers to a loader: paths, and encoded bytes by path."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from .decode import Header


class Encoded(NamedTuple):
    """An encoded image, the (height, width) of the upright original it shows, its header if it was read."""

    data: bytes
    image_size: tuple[int, int]
    header: Header | None = None


class ImageStore(Protocol):
    """Images by path. Stores are sent to worker processes, so they keep no open handle when pickled."""

    def paths(self) -> list[str]:
        """All paths, relative, with forward slashes, sorted."""

    def read(self, path: str) -> Encoded:
        """Read one image.

        Raises:
            ImageError: if it cannot be read; names the path and the reason.
        """

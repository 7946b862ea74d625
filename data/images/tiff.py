"""TIFF files of any number of bands, read by tifffile: satellites', microscopes', depth cameras'.

What is compressed otherwise than by deflate or PackBits also needs imagecodecs (`pip install
'hapicl[bands]'`).
Shape legend: H, W pixels as stored, C bands.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_BANDS = 4096
_ORIENTATIONS = range(2, 9)
# what tifffile raises at damaged files
_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    OSError,
    AssertionError,
    struct.error,
    zlib.error,
)


class TiffError(ValueError):
    """A TIFF that cannot be read; the message says why."""


class Layout(NamedTuple):
    """What a TIFF file says of itself before its pixels."""

    size: tuple[int, int]  # upright (H, W)
    bands: int
    dtype: str
    orientation: int  # as in EXIF; 1 where the pixels are upright already

    def __str__(self) -> str:
        return f"{self.bands} band{'s' if self.bands > 1 else ''} of {self.dtype}"


def read_layout(file: IO[bytes]) -> Layout:
    """Size and bands of an open file.

    Raises:
        TiffError: if it is damaged, or its pixels are of no single type.
    """
    with _opened(file) as pages:
        first = pages[0]
        height, width = first.imagelength, first.imagewidth
        if min(height, width) < 1 or first.dtype is None:
            raise ValueError(f"{width} x {height} pixels of type {first.dtype}")
        tag = first.tags.get("Orientation")
        orientation = int(tag.value) if tag is not None and tag.value in _ORIENTATIONS else 1
        size = (width, height) if orientation >= 5 else (height, width)
        bands = first.samplesperpixel if first.samplesperpixel > 1 else len(pages)
        return Layout(size, bands, first.dtype.name, orientation)


def read_bands(data: bytes, max_bytes: int) -> NDArray[Any]:
    """All bands as stored, (H, W, C) of the file's own type, not yet upright.

    Args:
        data: the file.
        max_bytes: of pixels; a file that claims more is refused before they are made room for.

    Raises:
        TiffError: if the file is damaged or too large, or a library for its compression is missing.
    """
    with _opened(io.BytesIO(data)) as pages:
        planes = []
        needed = sum(page.nbytes for page in pages)
        largest = max(math.prod(page.chunks) * page.dtype.itemsize for page in pages)
        if max(needed, largest) > max_bytes:
            raise TiffError(f"{max(needed, largest)} bytes of pixels are more than the limit of {max_bytes}")
        for page in pages:
            places = zip(page.dataoffsets, page.databytecounts, strict=True)
            if max((begin + length for begin, length in places), default=0) > len(data):
                raise ValueError("truncated")
            separate, depth, height, width, together = page.shaped
            if depth != 1:
                raise ValueError(f"a volume of {depth} slices")
            values = page.asarray().reshape(separate, height, width, together)
            planes.append(values.transpose(1, 2, 0, 3).reshape(height, width, -1))
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


@contextmanager
def _opened(stream: IO[bytes]) -> Iterator[list[Any]]:
    """The pages that hold a file's bands: one with all of them, or one for each."""
    import tifffile  # here, for photographs need none of it

    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True  # what matters of its complaints is in the error
    try:
        with tifffile.TiffFile(stream) as file:
            first: Any = file.pages[0]
            pages = [first]
            if first.samplesperpixel == 1:
                pages += [page for page in file.pages[1:MAX_BANDS] if _is_band(page, first)]
            yield pages
    except TiffError:
        raise
    except _DAMAGE as error:
        if "imagecodecs" in str(error):
            raise TiffError("compressed in a way that pip install 'hapicl[bands]' reads") from error
        raise TiffError(f"damaged TIFF, or of a rare kind: {error}") from error
    finally:
        logger.disabled = before


def _is_band(page: Any, first: Any) -> bool:
    """Whether another page is a band beside the first: no overview and no mask, of its size and type."""
    same = page.shape == first.shape and page.dtype == first.dtype and page.samplesperpixel == 1
    return bool(same and int(page.subfiletype) in (0, 2))

"""One image file: how large it is, and its pixels, always upright, and RGB unless a reader says otherwise.

Orientation is decided here once: the EXIF tag is applied, as `PIL.ImageOps.exif_transpose` would. What a file
is follows from its first bytes, never from its suffix (ImageNet holds a PNG named .JPEG).
Shape legend: H, W pixels of the upright image.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from collections.abc import Callable
from typing import IO, Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...common.errors import UserError
from ...common.terminal.printable import printable_name
from ...common.types import Pixels
from .kinds import HEAD_BYTES, KNOWN, how_to_read, kind_of, opener
from .quiet import quiet_codecs, quiet_pillow
from .tiff import TiffError, read_layout

# 50 million pixels decode to 150 MB; with the file, an upright copy and libraries a worker stays under 600 MB
MAX_PIXELS = 50_000_000
MAX_BYTES = 128_000_000

_STRIP_PIXELS = 1 << 20
# what Pillow's plugins raise at damaged headers
_PILLOW_DAMAGE = (SyntaxError, OSError, ValueError, OverflowError, RuntimeError)
_ORIENTATION_TAG = 0x0112
# EXIF orientation -> the turn that makes the stored pixels upright
UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image[::-1].transpose(1, 0, 2),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}
_REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
_REDUCED[8] = cv2.IMREAD_REDUCED_COLOR_8


class ImageError(UserError):
    """An image that cannot be used; `reason` alone is what a mask file records."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable_name(name)}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.name, self.reason)


class Header(NamedTuple):
    """What an image file says of itself before its pixels."""

    kind: str
    size: tuple[int, int]  # upright (H, W)
    orientation: int  # 1 where the pixels are already upright
    progressive: bool
    foreign: str = ""  # why the file cannot be read as a photograph


class Reader(Protocol):
    """Reads files as something else than photographs; `inputs.Inputs` does."""

    def decode(self, data: bytes, name: str, *, max_pixels: int) -> Pixels:
        """Decode as `decode_image` does, to (H, W, N) uint8 of any number of channels."""


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of the upright image in pixels, from the file's header alone.

    Raises:
        ImageError: if the file cannot be read or is no image.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(name, "not a plain file")
            return _header(file, name).size
    except OSError as error:
        raise ImageError(name, f"cannot be read: {error.strerror or error}") from error


def read_header(data: bytes, name: str) -> Header:
    """Kind and size of an image held in memory.

    Raises:
        ImageError: if it is no image; calls it `name`.
    """
    return _header(io.BytesIO(data), name)


def read_image(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
    reduce_to: int | None = None,
    reader: Reader | None = None,
) -> Pixels:
    """Read and decode one image file; see `decode_image`.

    Returns:
        (H, W, 3) uint8 RGB, upright, contiguous; with a reader as many channels as it gives.

    Raises:
        ImageError: if the file cannot be read or `decode_image` refuses it; names the path and the reason.
    """
    name = os.fspath(path)
    try:
        data = read_bytes(path)
        return decode_image(data, name, max_pixels=max_pixels, reduce_to=reduce_to, reader=reader)
    except OSError as error:
        raise ImageError(name, f"cannot be read: {error.strerror or error}") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read an encoded image whole.

    Raises:
        OSError: as `open` does; the caller knows whether a missing file is a mistake.
        ImageError: if it is no plain file, or larger than 128 MB.
    """
    with open(path, "rb", buffering=0, opener=_open) as file:  # in one piece, without a buffer between
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(os.fspath(path), "not a plain file")
        if status.st_size > MAX_BYTES:
            raise ImageError(
                os.fspath(path), f"{status.st_size} bytes are more than the limit of {MAX_BYTES}"
            )
        return file.read()


def _open(path: str, flags: int) -> int:
    """Open as `open` does, but do not wait for a writer where the file is a named pipe."""
    try:
        return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise ImageError(os.fspath(path), "not a plain file") from error
        raise


def decode_image(
    data: bytes,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    reduce_to: int | None = None,
    header: Header | None = None,
    reader: Reader | None = None,
) -> Pixels:
    """Decode an image held in memory to upright RGB.

    Greyscale, palette, CMYK and 16-bit images become 8-bit RGB, an alpha channel is dropped.

    Args:
        data: the encoded file.
        name: what to call it in an error.
        max_pixels: refuse images whose decoding needs more pixels than this (decompression bombs).
        reduce_to: a baseline JPEG may be decoded at a half, quarter or eighth of its size as long as its
            short side keeps at least this many pixels (sides round up: take the true size from `image_size`).
        header: of these bytes, if the caller has read it already.
        reader: what decodes files that are no photographs; it reduces nothing.

    Returns:
        (H, W, 3) uint8 RGB, contiguous; smaller than the image if reduced; with a reader as many channels as
        it gives.

    Raises:
        ImageError: for an empty, truncated, damaged or foreign file, and above the limit.
    """
    if reader is not None:
        return reader.decode(data, name, max_pixels=max_pixels)
    header = header or read_header(data, name)
    if header.foreign:
        raise ImageError(name, header.foreign)
    height, width = header.size
    factor = 1
    if reduce_to is not None and header.kind == "JPEG":
        factor = next((by for by in (8, 4, 2) if -(-min(height, width) // by) >= reduce_to), 1)
    # a progressive JPEG keeps the coefficients of every pixel whatever the size it is decoded to
    needed = height * width if header.progressive else -(-height // factor) * -(-width // factor)
    # OpenCV decodes TIFF through a second copy
    limit = max_pixels // 2 if header.kind == "TIFF" else max_pixels
    if needed > limit:
        raise ImageError(name, f"{width} x {height} pixels are more than the limit of {limit}")
    decode = _decode_pillow if header.kind in {"GIF", "AVIF", "HEIC"} else _decode_cv2
    image = decode(data, name, header, factor)
    if factor == 1 and image.shape[:2] != header.size:
        raise ImageError(name, f"decoded to {image.shape[:2]}, but its header says {header.size}")
    return np.ascontiguousarray(image)


def _header(file: IO[bytes], name: str) -> Header:
    """Kind, upright size and orientation from a file's header."""
    head = file.read(HEAD_BYTES)
    if not head:
        raise ImageError(name, "empty file")
    kind = kind_of(head)
    if kind is None:
        raise ImageError(name, f"not an image of a known kind ({', '.join(KNOWN)})")
    if missing := how_to_read(kind):
        raise ImageError(name, f"a {kind} image; {missing} reads it")
    file.seek(0)
    try:
        with quiet_pillow():
            image = opener(kind)(file)
            # a HEIC file's own turn is part of its decoding, and its EXIF tag does not count beside it
            orientation = 1 if kind == "HEIC" else _orientation(image)
    except _PILLOW_DAMAGE as error:
        if kind == "TIFF" and (header := _many_bands(file)):
            return header
        raise ImageError(name, f"damaged {kind} header: {error}") from error
    width, height = image.size
    if min(width, height) < 1:
        raise ImageError(name, f"damaged {kind} header: {width} x {height} pixels")
    foreign = ""
    if image.mode in ("F", "I"):
        foreign = f"pixels of 32 bits ({image.mode}) have no agreed range; give 8 or 16 bits"
    if orientation >= 5 and kind != "TIFF":  # Pillow's TIFF plugin already gives the upright size
        width, height = height, width
    return Header(kind, (height, width), orientation, bool(image.info.get("progressive")), foreign)


def _many_bands(file: IO[bytes]) -> Header | None:
    """The header of a TIFF that Pillow has no name for, such as one of six bands."""
    file.seek(0)
    try:
        layout = read_layout(file)
    except TiffError:
        return None
    foreign = (
        f"{layout}, no photograph; `pretrain --set in_channels=N` trains on such files, "
        "`masks build --bands` makes masks of them"
    )
    return Header("TIFF", layout.size, layout.orientation, False, foreign)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; damaged EXIF data, or none, is 1 (upright).

    The plugin's own `getexif` would decode a whole PNG to look for EXIF data behind the pixels; the base
    class's takes what the header has given.
    """
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except (SyntaxError, struct.error, ValueError, OSError):
        return 1
    return value if value in UPRIGHT else 1


def _decode_cv2(data: bytes, name: str, header: Header, factor: int) -> Pixels:
    """Decode with OpenCV to upright RGB."""
    flags = _REDUCED[factor]
    if header.kind == "JPEG":  # the decoder's own order of channels saves turning them afterwards
        flags = flags & ~cv2.IMREAD_COLOR | cv2.IMREAD_COLOR_RGB
    if header.kind != "TIFF":  # libtiff turns half of the orientations itself, so OpenCV has to do the rest
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        with quiet_codecs():
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(name, f"cannot be decoded: {error.err}") from error
    if decoded is None:
        raise ImageError(name, "cannot be decoded: truncated or damaged")
    image = np.asarray(decoded, np.uint8)
    step = max(1, _STRIP_PIXELS // image.shape[1])
    # in strips: OpenCV would copy the whole to convert it in place
    for top in range(0, 0 if header.kind == "JPEG" else image.shape[0], step):
        image[top : top + step] = cv2.cvtColor(image[top : top + step], cv2.COLOR_BGR2RGB)
    if header.kind != "TIFF" and header.orientation in UPRIGHT:
        image = UPRIGHT[header.orientation](image)
    return image


def _decode_pillow(data: bytes, name: str, header: Header, factor: int) -> Pixels:
    """Decode a file's first picture with Pillow to upright RGB; OpenCV reads GIF only from 4.11."""
    try:
        with quiet_pillow():
            image = np.array(opener(header.kind)(io.BytesIO(data)).convert("RGB"))
    except (OSError, SyntaxError, EOFError, ValueError, RuntimeError) as error:
        raise ImageError(name, f"cannot be decoded: {error}") from error
    return UPRIGHT[header.orientation](image) if header.orientation in UPRIGHT else image

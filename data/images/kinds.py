"""Kinds of image files, by their first bytes, and what opens each.

AVIF needs a Pillow that was built with it (11.3 and newer are), HEIC the package pillow-heif
(`pip install 'hapicl[heic]'`).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import IO, Any

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

HEAD_BYTES = 16  # that tell a kind
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
# files that hold pictures and that nothing here reads
UNREAD_SUFFIXES = frozenset(
    (".jxl", ".jp2", ".j2k", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".psd", ".exr")
)
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))

Opener = Callable[[IO[bytes]], Image.Image]
# The plugin classes are opened directly: Image.open adds its own pixel limit, a process-wide setting.
_KINDS: dict[str, tuple[Opener, Callable[[bytes], bool]]] = {
    "JPEG": (JpegImagePlugin.JpegImageFile, lambda head: head[:3] == b"\xff\xd8\xff"),
    "PNG": (PngImagePlugin.PngImageFile, lambda head: head[:8] == b"\x89PNG\r\n\x1a\n"),
    "WEBP": (WebPImagePlugin.WebPImageFile, lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    "TIFF": (TiffImagePlugin.TiffImageFile, lambda head: head[:4] in (b"II*\0", b"MM\0*")),
    "BMP": (BmpImagePlugin.BmpImageFile, lambda head: head[:2] == b"BM"),
    "GIF": (GifImagePlugin.GifImageFile, lambda head: head[:6] in (b"GIF87a", b"GIF89a")),
    "PPM": (PpmImagePlugin.PpmImageFile, lambda head: head[:1] == b"P" and head[1:2] in b"123456"),
    "AVIF": (
        lambda file: _plugin("PIL.AvifImagePlugin").AvifImageFile(file),
        lambda head: head[4:12] in (b"ftypavif", b"ftypavis"),
    ),
    "HEIC": (
        lambda file: _plugin("pillow_heif").HeifImageFile(file),
        lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS,
    ),
}
KNOWN = tuple(_KINDS)
# two letters begin many a text, so a file without a suffix is not taken for one of these
_WEAK = frozenset(("BMP", "PPM"))
_INSTALL = {"AVIF": "pip install 'pillow>=11.3'", "HEIC": "pip install 'hapicl[heic]'"}
_SUFFIXES_OF = {".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC"}


def kind_of(head: bytes) -> str | None:
    """Name the kind of a file by its first bytes; None for what is no image."""
    return next((kind for kind, (_, accepts) in _KINDS.items() if accepts(head)), None)


def opener(kind: str) -> Opener:
    """What opens a kind's header."""
    return _KINDS[kind][0]


def is_sure(head: bytes) -> bool:
    """Whether first bytes are an image's beyond doubt, of a kind that can be read here."""
    kind = kind_of(head)
    return kind is not None and kind not in _WEAK and not how_to_read(kind)


@cache
def how_to_read(kind: str) -> str:
    """What to install so that a kind can be read; nothing where it can be."""
    readable = True
    if kind == "AVIF":
        readable = "avif" in features.modules and bool(features.check("avif"))
    elif kind == "HEIC":
        readable = importlib.util.find_spec("pillow_heif") is not None
    return "" if readable else _INSTALL[kind]


def is_listed(suffix: str) -> bool:
    """Whether files of a suffix, in lower case with its dot, are images that can be read here."""
    return suffix in SUFFIXES or (suffix in _SUFFIXES_OF and not how_to_read(_SUFFIXES_OF[suffix]))


def readable_suffixes() -> list[str]:
    """The suffixes of images that can be read here."""
    return sorted(suffix for suffix in {*SUFFIXES, *_SUFFIXES_OF} if is_listed(suffix))


def why_left_out(suffix: str) -> str | None:
    """Why images of a suffix are not read, for the user; None for what is read, or no image."""
    if suffix in _SUFFIXES_OF:
        install = how_to_read(_SUFFIXES_OF[suffix])
        return f"{install} reads them" if install else None
    return "convert them, to JPEG or PNG for example" if suffix in UNREAD_SUFFIXES else None


def _plugin(name: str) -> Any:
    """Import a plugin when a file needs it."""
    return importlib.import_module(name)

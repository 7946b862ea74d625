"""Self-contained HTML pages: one file with its pictures inside, to be mailed, archived or opened offline.

Every report of the package is made here, so they all look alike. Text is escaped; nothing is loaded from
anywhere when the page is opened, and the page itself forbids it.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from .chart import Chart
from .terminal.printable import printable

# first bytes of a file -> its media type
MEDIA_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    `image` holds the bytes of a PNG or JPEG file, or pixels: (H, W) or (H, W, 3) uint8, or (H, W) bool.
    Pixels are stored as PNG, or with `lossy`, which suits photographs and is much smaller, as JPEG of quality
    88. `alt` is read aloud in place of the picture; the caption serves where it is not given.
    `width` limits the shown width, CSS pixels; the picture never grows past its own.
    """

    image: bytes | np.ndarray[Any, Any]
    caption: str = ""
    alt: str = ""
    lossy: bool = False
    width: int | None = None

    @property
    def uri(self) -> str:
        """Give the picture as a data URI."""
        content = self.image if isinstance(self.image, bytes) else encode_image(self.image, lossy=self.lossy)
        kinds = [kind for start, kind in MEDIA_TYPES.items() if content.startswith(start)]
        if not kinds:
            raise ValueError(f"a picture is PNG or JPEG bytes; these begin with {content[:8]!r}")
        return f"data:{kinds[0]};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Pictures:
    """Pictures or charts side by side, as many to a row as fit; `minimum` is the least width, CSS pixels.

    A click on a picture shows it as large as the window. With `cards` each stands in a frame of its own.
    """

    pictures: Sequence[Picture | Chart]
    minimum: int = 260
    cards: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text or numbers below the column names; numbers are set flush right, as they are given.

    Format numbers before (`f"{value:.3f}"`) and say so with `numeric`, the positions of such columns. Without
    column names the first column is the head of each row, as in a list of settings.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    numeric: Sequence[int] = ()


@dataclass(frozen=True)
class Code:
    """Commands or other text to be copied, shown as it is."""

    text: str


@dataclass(frozen=True)
class Note:
    """A paragraph that must not be overlooked."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that a reader opens with a click on their summary."""

    summary: str
    blocks: Sequence[Block]


Block = str | Picture | Chart | Pictures | Table | Code | Note | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in order; a plain string is a paragraph."""

    heading: str
    blocks: Sequence[Block] = ()


def page(title: str, sections: Sequence[Section], *, lead: str = "", footer: str = "") -> str:
    """Make a self-contained HTML page, readable on a phone, in the dark and on paper.

    Args:
        title: heading of the page and name of the browser's tab.
        sections: the content, in order; more than three get a table of contents.
        lead: one paragraph below the title.
        footer: one line at the end, such as how and when the page was made.

    Returns:
        The page; write it with `data.files.atomic_write` as UTF-8.

    Raises:
        ValueError: for a picture that is neither PNG, JPEG nor pixels, or a table with uneven rows.
    """
    for section in sections:
        _check_tables(section.blocks, section.heading)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = importlib.resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment.tests["kind"] = _is_kind
    text = environment.from_string(template).render(title=title, sections=sections, lead=lead, footer=footer)
    return printable(text)  # a file's name may hold bytes that are not UTF-8


def encode_image(pixels: np.ndarray[Any, Any], *, lossy: bool = False) -> bytes:
    """Encode pixels as a PNG file, or with `lossy` as a JPEG file of quality 88.

    Args:
        pixels: (H, W) or (H, W, 3) uint8, or (H, W) bool (False black, True white).

    Raises:
        ValueError: for another type or shape.
    """
    mask = pixels.dtype == bool and pixels.ndim == 2
    photograph = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not mask and not (pixels.dtype == np.uint8 and photograph):
        raise ValueError(
            f"a picture is (H, W) or (H, W, 3) uint8, or (H, W) bool, not {pixels.shape} {pixels.dtype}"
        )
    stream = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8) * 255 if mask else pixels)
    if lossy:
        image.save(stream, "JPEG", quality=88)
    else:
        image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _check_tables(blocks: Sequence[Block], heading: str) -> None:
    """Look at every table, folded ones too."""
    for block in blocks:
        if isinstance(block, Table):
            _check_rows(block, heading)
        elif isinstance(block, Folded):
            _check_tables(block.blocks, heading)


def _check_rows(table: Table, heading: str) -> None:
    """Refuse a table whose rows differ in length, before a reader sees shifted columns."""
    lengths = {len(row) for row in table.rows} | ({len(table.columns)} if table.columns else set())
    if len(lengths) > 1:
        raise ValueError(f"a table under {heading!r} has rows of {sorted(lengths)} cells")


def _is_kind(block: Block, kind: str) -> bool:
    """Tell the template what a block is, by class name."""
    return type(block).__name__ == kind

"""Looking at a mask file: contact sheets and a page.

Shape legend: H, W a picture; a tile is an image beside itself with its mask.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.errors import UserError
from ...common.iou import iou
from ...common.page import Picture, encode_image
from ...common.randomness import counter_generator
from ...common.terminal.printable import printable
from ...common.types import Mask, Pixels
from ...data.images import open_originals
from ...data.images.store import OriginalImages, read_pixels
from ...data.masks.format import MaskStatus
from ...data.masks.reader import MaskReader
from ..exchange.tree import resize_mask
from ..recipes import recorded_reader

TILE_SIDE = 192  # long side of an image in a sheet, pixels
CARD_SIDE = 320  # of a page's cards
_LABEL_HEIGHT = 15
_TINT = np.array((255, 64, 32), np.float32)


def overlay(image: Pixels, mask: Mask) -> Pixels:
    """Show a mask on its image: foreground tinted and outlined, background darkened.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (h, w) bool of any size.

    Returns:
        (H, W, 3) uint8.
    """
    full = resize_mask(mask, (image.shape[0], image.shape[1]))
    pixels = image.astype(np.float32)
    shown = np.where(full[:, :, None], 0.65 * pixels + 0.35 * _TINT, 0.45 * pixels).astype(np.uint8)
    outlines, _ = cv2.findContours(full.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, outlines, -1, (255, 255, 0), 1)
    return shown


def tile(pictures: Sequence[Pixels], label: str, side: int = TILE_SIDE) -> Pixels:
    """Lay pictures of one image side by side, each brought to a long side of `side`, above a label."""
    shrunk = [shrink(picture, side) for picture in pictures]
    height = max(picture.shape[0] for picture in shrunk)
    width = sum(picture.shape[1] for picture in shrunk)
    canvas = np.full((height + _LABEL_HEIGHT, width, 3), 255, np.uint8)
    left = 0
    for picture in shrunk:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1]
    return write_label(canvas, label, height)


def contact_sheet(tiles: Sequence[Pixels], width: int = 1600, gap: int = 8) -> Pixels:
    """Arrange tiles in rows of at most `width` pixels.

    Returns:
        (H, W, 3) uint8 on white.
    """
    rows: list[list[Pixels]] = [[]]
    for each in tiles:
        if rows[-1] and sum(one.shape[1] + gap for one in rows[-1]) + each.shape[1] > width:
            rows.append([])
        rows[-1].append(each)
    total_height = sum(max(one.shape[0] for one in row) + gap for row in rows if row) + gap
    total_width = max(sum(one.shape[1] + gap for one in row) + gap for row in rows)
    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    top = gap
    for row in rows:
        left = gap
        for one in row:
            canvas[top : top + one.shape[0], left : left + one.shape[1]] = one
            left += one.shape[1] + gap
        top += max((one.shape[0] for one in row), default=0) + gap
    return canvas


def shrink(picture: Pixels, side: int) -> Pixels:
    """Bring a picture to a long side of `side` pixels (small ones are enlarged), three channels."""
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    factor = side / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.uint8)


def write_label(canvas: Pixels, text: str, top: int) -> Pixels:
    """Write small text into a picture at a height, cut at its right edge."""
    image = Image.fromarray(canvas)
    font = ImageFont.load_default()
    ImageDraw.Draw(image).text((1, top + 1), printable(text), fill=(40, 40, 40), font=font)
    return np.asarray(image)


def mask_tiles(
    reader: MaskReader, originals: OriginalImages, paths: Sequence[str], side: int = TILE_SIDE
) -> list[Pixels]:
    """Make the tiles of some rows: the image, and the image under its mask.

    Raises:
        UserError: if an image cannot be read, naming the option that says where images are.
    """
    tiles = []
    for path in paths:
        mask = reader[path]
        image = shown_image(reader, originals, path, side)
        label = f"{reader.coverage(path):.0%} c {reader.confidence(path):.2f} {Path(path).name}"
        tiles.append(tile([image, overlay(image, mask)], label, side))
    return tiles


def mask_cards(
    readers: Sequence[MaskReader], originals: OriginalImages, paths: Sequence[str], side: int = CARD_SIDE
) -> list[Picture]:
    """Make the cards of a page: the image, and the image under its mask in each file; numbered, with figures.

    Args:
        readers: one mask file, or two to be compared; then the caption says how far their masks agree.
        originals: the folder, archives or store that the images are in.
        paths: their names there.
        side: long side of the image, pixels.

    Raises:
        UserError: if an image cannot be read, naming the option that says where images are.
    """
    cards = []
    for number, path in enumerate(paths, start=1):
        masks = [reader[path] for reader in readers]
        shown = shown_image(readers[0], originals, path, side)
        pictures = [shrink(shown, side), *(shrink(overlay(shown, mask), side) for mask in masks)]
        shares = " and ".join(f"{reader.coverage(path):.0%}" for reader in readers)
        words = f"foreground {shares}"
        if len(readers) == 1:
            words += f", confidence {readers[0].confidence(path):.2f}"
        else:
            words += f", agreement (IoU) {agreement(masks[0], masks[1]):.2f}"
        cards.append(
            Picture(
                np.concatenate(pictures, axis=1),
                f"{number}. {path}: {words}",
                alt=f"{path} and its mask",
                lossy=True,
            )
        )
    return cards


def agreement(first: Mask, second: Mask) -> float:
    """IoU of two masks of one image, the second brought to the first one's size."""
    return iou(first, resize_mask(second, (first.shape[0], first.shape[1])))


def shown_images(reader: MaskReader, images: str | os.PathLike[str] | None) -> OriginalImages:
    """Open the images of a mask file, where it says or where they are now."""
    return open_originals(reader.image_root if images is None else images)


def shown_image(reader: MaskReader, originals: OriginalImages, path: str, side: int) -> Pixels:
    """Read an image of a mask file as its masks were made of it, small where it is a JPEG.

    Raises:
        UserError: if it cannot be read, naming the option that says where images are.
    """
    try:
        return read_pixels(originals, path, reduce_to=side, reader=recorded_reader(reader.recipe))
    except UserError as error:
        raise UserError(f"{error}; if the images were moved, say where they are with --images") from error


def random_paths(reader: MaskReader, count: int, seed: int = 0) -> list[str]:
    """Draw rows that hold a mask, without repetition, the same for the same file and seed."""
    rows = masked_rows(reader)
    generator = counter_generator(seed, 0, 0, 0, "gallery")
    chosen = np.sort(generator.permutation(rows)[:count])
    return [reader.paths[int(row)] for row in chosen]


def extreme_paths(reader: MaskReader, column: str, count: int, *, largest: bool = False) -> list[str]:
    """Pick the rows with the smallest or largest `coverage` or `confidence`; nan is left out."""
    rows = masked_rows(reader)
    values = np.asarray(reader.column(column)[rows], np.float64)
    rows, values = rows[~np.isnan(values)], values[~np.isnan(values)]
    order = np.argsort(-values if largest else values, kind="stable")[:count]
    return [reader.paths[int(row)] for row in rows[order]]


def masked_rows(reader: MaskReader) -> NDArray[np.int64]:
    """Rows that hold a mask."""
    unreadable = list(MaskStatus).index(MaskStatus.UNREADABLE)
    return np.flatnonzero(reader.column("status") != unreadable)


def gallery_png(
    masks: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    sample: int = 24,
    paths: Sequence[str] = (),
    seed: int = 0,
) -> list[str]:
    """Write a contact sheet of a random sample, or of given rows.

    Args:
        masks: the mask file.
        out: the PNG to write.
        images: the image folder, archives or URL, if they are not where the mask file says.
        sample: how many rows to draw; the same seed draws the same.
        paths: rows to show instead, relative to the image folder.

    Returns:
        The paths shown.

    Raises:
        UserError: if there is nothing to show, a path is unknown, an image cannot be read, or `out` not be
            written.
    """
    refuse_unwritable(out)
    reader = MaskReader(masks)
    chosen = list(paths) or random_paths(reader, sample, seed)
    if not chosen:
        raise UserError(f"{reader.path} holds no mask to show")
    picture = contact_sheet(mask_tiles(reader, shown_images(reader, images), chosen))
    with atomic_write(out) as part:
        part.write_bytes(encode_image(picture))
    return chosen

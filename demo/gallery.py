"""The demo's gallery: image, saliency, mask and truth side by side, photographs left and collages right.

Which pictures are shown follows from their names alone: every photograph, and the first collage of every
class.

Shape legend: H, W picture height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..data.images.decode import read_image
from ..data.masks.reader import MaskReader
from ..maskgen.pipeline import segment
from .folder import Folder

TILE = (120, 160)  # (H, W) of the box a picture is fitted into
GAP, HEADING, CAPTION = 6, 26, 20  # pixels
COLUMNS = ("image", "saliency", "mask found", "true mask")
TINT = np.array([0, 230, 118], np.float32)  # of the foreground in overlays: rare in objects
PAPER, INK = 255, (60, 66, 76)


def shown_pictures(pictures: Folder) -> tuple[list[str], list[str]]:
    """Name the photographs and the collages to show: all, and the first of each class."""
    first = {name.split("/")[0]: name for name in reversed(pictures.collages)}
    return list(pictures.photographs), [first[label] for label in sorted(first)]


def gallery(
    pictures: Folder, masks: MaskReader, names: Sequence[str], overlaps: Mapping[str, float]
) -> NDArray[np.uint8]:
    """Draw one row of four tiles for each picture, below the names of the columns.

    Args:
        pictures: the image folder.
        masks: its masks.
        names: the pictures, top to bottom.
        overlaps: name -> intersection over union of mask and truth, written below the mask where it is there.

    Returns:
        (H, W, 3) uint8.
    """
    rows = [_row(pictures, masks, name, overlaps.get(name)) for name in names]
    drawn = np.concatenate([_heading(rows[0].shape[1]), *rows])
    return np.pad(drawn, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=PAPER)


def side_by_side(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Join two galleries, (H, W, 3) uint8; the shorter one is filled up with paper."""
    height = max(len(left), len(right))
    filled = [
        np.pad(half, ((0, height - len(half)), (GAP, GAP), (0, 0)), constant_values=PAPER)
        for half in (left, right)
    ]
    return np.concatenate(filled, axis=1)


def overlay(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Darken the background and outline the foreground; mask at any size, (H, W, 3) uint8."""
    height, width = image.shape[:2]
    full = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    shown = np.where(full[..., None], 0.9 * image + 0.1 * TINT, 0.35 * image).astype(np.uint8)
    contours, _ = cv2.findContours(full.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, contours, -1, TINT.tolist(), max(1, round(max(height, width) / 160)))
    return shown


def _row(pictures: Folder, masks: MaskReader, name: str, iou: float | None) -> NDArray[np.uint8]:
    """One picture's four tiles with a caption."""
    image = read_image(pictures.images / name)
    saliency = segment(image, masks.recipe["name"]).saliency
    truth = read_image((pictures.truth / name).with_suffix(".png"))
    grey = np.repeat((saliency * 255).astype(np.uint8)[..., None], 3, axis=2)
    tiles = [_fit(image), _fit(grey), _fit(overlay(image, masks[name])), _fit(truth)]
    captions = [Path(name).stem if "collage" not in name else f"collage: {name.split('/')[0]}", "", "", ""]
    if iou is not None:
        captions[2] = f"IoU {iou:.2f}"
    gap = np.full((TILE[0] + CAPTION, GAP, 3), PAPER, np.uint8)
    parts = [
        piece
        for tile, caption in zip(tiles, captions, strict=True)
        for piece in (np.concatenate([tile, _text(caption, TILE[1], CAPTION, 12)]), gap)
    ]
    return np.concatenate(parts[:-1], axis=1)


def _heading(width: int) -> NDArray[np.uint8]:
    """The names of the four columns."""
    cells = [_text(name, TILE[1] + GAP, HEADING, 15) for name in COLUMNS]
    return np.concatenate(cells, axis=1)[:, :width]


def _text(text: str, width: int, height: int, size: int) -> NDArray[np.uint8]:
    """A line of text on paper."""
    canvas = Image.new("RGB", (width, height), (PAPER,) * 3)
    ImageDraw.Draw(canvas).text((1, height // 2), text, INK, ImageFont.load_default(size), anchor="lm")
    return np.asarray(canvas)


def _fit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale a picture into the tile's box, centred on paper."""
    scale = min(TILE[0] / image.shape[0], TILE[1] / image.shape[1])
    height, width = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    tile = np.full((*TILE, 3), PAPER, np.uint8)
    top, left = (TILE[0] - height) // 2, (TILE[1] - width) // 2
    tile[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=mode)
    return tile

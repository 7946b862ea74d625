"""Collages: an object of one photograph on a piece of another, so that the true mask is known.

Every draw comes from the counter (seed, collage), so each collage is the same on every machine and whatever
else is made.

Shape legend: H, W collage height and width; h, w those of a cut-out; pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..common.randomness import counter_generator
from .photographs import Outline, Photograph, fill_polygons

SIZES = ((240, 320), (320, 240), (288, 288))  # (H, W)
AREA_SHARE = (0.08, 0.40)  # of the collage covered by the object, before it is made to fit
LARGEST_SIDE = (0.5, 0.95)  # of the collage's side, which bounds long objects
LARGEST_SCALE = 1.8  # coins are small: enlarging them more would show
BRIGHTNESS = (0.8, 1.2)
BACKGROUND_ZOOM = (0.6, 1.0)  # side of the piece over the largest that fits its box
MIRRORED = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Cutout:
    """An object without its surroundings."""

    label: str
    source: str  # file name of its photograph
    edges: tuple[str, ...]
    colour: NDArray[np.uint8]  # (h, w, 3)
    alpha: NDArray[np.float32]  # (h, w) in [0, 1]


@dataclass(frozen=True)
class Collage:
    """A collage with its truth."""

    label: str
    source: str
    background: str
    image: NDArray[np.uint8]  # (H, W, 3)
    truth: NDArray[np.bool_]  # (H, W)


def cut_out(photograph: Photograph, outline: Outline) -> Cutout:
    """Cut an object out one pixel inside its outline, with a soft edge: no old background shows."""
    mask = fill_polygons([outline.polygon], photograph.pixels.shape[:2]).astype(np.uint8)
    # beyond the frame the object goes on: there the edge stays sharp and in place
    mask = np.pad(mask, 3, mode="edge") if outline.edges else np.pad(mask, 3)
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8)).astype(np.float32)
    alpha = np.asarray(cv2.GaussianBlur(inner, (0, 0), 0.7)[3:-3, 3:-3], np.float32)
    left, top, width, height = cv2.boundingRect((alpha > 0.02).astype(np.uint8))
    window = np.s_[top : top + height, left : left + width]
    return Cutout(outline.label, photograph.name, outline.edges, photograph.pixels[window], alpha[window])


def cutouts_by_label(photographs: Sequence[Photograph]) -> dict[str, list[Cutout]]:
    """Cut out every object that collages may paste, gathered by its label, labels sorted."""
    gathered: dict[str, list[Cutout]] = {}
    for photograph in photographs:
        for outline in photograph.outlines:
            if "cutout" in outline.uses:
                gathered.setdefault(outline.label, []).append(cut_out(photograph, outline))
    return dict(sorted(gathered.items()))


def make_collage(
    number: int, cutouts: Sequence[Cutout], photographs: Sequence[Photograph], *, seed: int
) -> Collage:
    """Make collage `number`: one of the cut-outs on a background that is not from its own photograph."""
    generator = counter_generator(seed, 0, number, 0, purpose="collage")
    size = SIZES[int(generator.integers(len(SIZES)))]
    cutout = cutouts[int(generator.integers(len(cutouts)))]
    others = [other for other in photographs if other.backgrounds and other.name != cutout.source]
    background = others[int(generator.integers(len(others)))]
    canvas = draw_background(generator, background, size)
    image, truth = paste(generator, canvas, cutout)
    return Collage(cutout.label, cutout.source, background.name, image, truth)


def draw_background(
    generator: np.random.Generator, photograph: Photograph, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Draw a piece without objects, mirrored or not, and tint a grey one; (H, W, 3) in [0, 255]."""
    height, width = size
    left, top, right, bottom = photograph.backgrounds[int(generator.integers(len(photograph.backgrounds)))]
    ratio = min((right - left) / width, (bottom - top) / height) * generator.uniform(*BACKGROUND_ZOOM)
    piece_height, piece_width = max(1, int(height * ratio)), max(1, int(width * ratio))
    y = top + int(generator.integers(bottom - top - piece_height + 1))
    x = left + int(generator.integers(right - left - piece_width + 1))
    piece = photograph.pixels[y : y + piece_height, x : x + piece_width]
    mode = cv2.INTER_AREA if ratio > 1 else cv2.INTER_CUBIC
    canvas = np.asarray(cv2.resize(piece, (width, height), interpolation=mode), np.float32)
    tint = generator.uniform(0.7, 1.15, 3)
    if photograph.grey:
        canvas = np.clip(canvas * tint, 0, 255).astype(np.float32)
    if generator.random() < 0.5:
        canvas = canvas[:, ::-1]
    return canvas


def paste(
    generator: np.random.Generator, canvas: NDArray[np.float32], cutout: Cutout
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paste a cut-out at a random scale, place, brightness and flip.

    Returns:
        The picture, (H, W, 3) uint8, and its truth, (H, W) bool: where the object covers at least half of a
        pixel.
    """
    height, width = canvas.shape[:2]
    fraction, side = generator.uniform(*AREA_SHARE), generator.uniform(*LARGEST_SIDE)
    scale = min(
        np.sqrt(fraction * height * width / cutout.alpha.sum()),
        side * height / cutout.alpha.shape[0],
        side * width / cutout.alpha.shape[1],
        LARGEST_SCALE,
    )
    object_height, object_width = (max(2, round(side * scale)) for side in cutout.alpha.shape)
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    colour = cv2.resize(cutout.colour, (object_width, object_height), interpolation=mode)
    alpha = cv2.resize(cutout.alpha, (object_width, object_height), interpolation=mode)
    edges = set(cutout.edges)
    if generator.random() < 0.5:
        colour, alpha = colour[:, ::-1], alpha[:, ::-1]
        edges = {MIRRORED.get(edge, edge) for edge in edges}
    y = _place(generator, height - object_height, "top" in edges, "bottom" in edges)
    x = _place(generator, width - object_width, "left" in edges, "right" in edges)
    window = np.s_[y : y + object_height, x : x + object_width]
    bright = np.clip(colour.astype(np.float32) * generator.uniform(*BRIGHTNESS), 0, 255)
    image = canvas.copy()
    image[window] += alpha[..., None] * (bright - image[window])
    truth = np.zeros((height, width), bool)
    truth[window] = alpha >= 0.5
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), truth


def _place(generator: np.random.Generator, room: int, at_start: bool, at_end: bool) -> int:
    """Draw a position along one side; an edge that the frame cut lies on the border."""
    drawn = int(generator.integers(room + 1))
    return 0 if at_start else room if at_end else drawn

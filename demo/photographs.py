"""The photographs that scikit-image and scikit-learn carry in their wheels, and where their objects are.

`polygons.json` names each file with its credit, the outlines of its objects, drawn by hand over the picture
and tightened, and boxes that hold no object. Nothing is downloaded.

Shape legend: H, W picture height and width in pixels.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common.errors import UserError

# where each package keeps its pictures
PICTURE_FOLDERS = {"scikit-image": "skimage.data", "scikit-learn": "sklearn.datasets.images"}


@dataclass(frozen=True)
class Outline:
    """One object of a photograph.

    `uses` holds "truth" (it belongs to the photograph's own foreground), "cutout" (collages paste it) or
    both: a cat that the frame cuts on three sides is truth as a whole, and only its face is pasted. `edges`
    are the sides on which the frame cuts a cut-out; collages lay these on their own border.
    """

    label: str
    uses: tuple[str, ...]
    edges: tuple[str, ...]
    polygon: tuple[tuple[int, int], ...]  # (x, y) vertices, pixels


@dataclass(frozen=True)
class Photograph:
    """A picture as shipped, with its outlines and the boxes (left, top, right, bottom) free of objects."""

    name: str
    credit: str
    path: Path
    pixels: NDArray[np.uint8]  # (H, W, 3), greyscale repeated
    outlines: tuple[Outline, ...]
    backgrounds: tuple[tuple[int, int, int, int], ...]

    @property
    def grey(self) -> bool:
        """Whether the picture has no colour."""
        return bool((self.pixels == self.pixels[..., :1]).all())

    def truth(self) -> NDArray[np.bool_]:
        """Give the foreground, (H, W): all its objects together."""
        polygons = [outline.polygon for outline in self.outlines if "truth" in outline.uses]
        return fill_polygons(polygons, self.pixels.shape[:2])


def fill_polygons(polygons: Sequence[Sequence[tuple[int, int]]], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Fill each polygon of (x, y) vertices in an (H, W) mask, border pixels included."""
    mask = np.zeros(tuple(shape), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.array(polygon, np.int32)], 1)
    return mask.astype(bool)


def load_photographs() -> dict[str, Photograph]:
    """Read every picture of `polygons.json` from the installed packages.

    Returns:
        Photographs by file name, in the order of the file.

    Raises:
        UserError: if the installed package lacks a picture; names package, version and picture.
    """
    text = importlib.resources.files(__package__).joinpath("polygons.json").read_text(encoding="utf-8")
    return {name: _load(name, entry) for name, entry in json.loads(text).items()}


def _load(name: str, entry: dict[str, object]) -> Photograph:
    package = str(entry["package"])
    path = Path(str(importlib.resources.files(PICTURE_FOLDERS[package]) / name))
    if not path.is_file():
        version = importlib.metadata.version(package)
        raise UserError(
            f"{package} {version} does not carry {name}, which the demo needs; "
            f"install it from PyPI: pip install --force-reinstall --no-deps {package}"
        )
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width = pixels.shape[:2]
    boxes = [[0, 0, width, height]] if entry["backgrounds"] == "whole" else entry["backgrounds"]
    outlines = [
        Outline(
            item["class"],
            tuple(item["use"]),
            tuple(item["edges"]),
            tuple((x, y) for x, y in item["polygon"]),
        )
        for item in entry["objects"]  # type: ignore[attr-defined]
    ]
    return Photograph(
        name=name,
        credit=str(entry["credit"]),
        path=path,
        pixels=pixels,
        outlines=tuple(outlines),
        backgrounds=tuple(tuple(box) for box in boxes),  # type: ignore[attr-defined]
    )

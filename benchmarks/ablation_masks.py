"""Mask files for the mask ablation of the claims table, besides those of `hapicl masks build --recipe`.

    python benchmarks/ablation_masks.py rectangles masks.h5 rectangles.h5
    python benchmarks/ablation_masks.py felzenszwalb DIR felzenszwalb.h5

`rectangles` has no content: one random rectangle an image, with the coverage, confidence and flag of the
image's mask in another file. `felzenszwalb` is the recipe of that name with regions for photographs of 64
pixels: at the recipe's own (DetCon's, for 224 pixels and more) nearly every such mask is empty.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import pack_mask, write_masks
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.recipes import get_recipe

WIDEST = 2.0  # aspect of a rectangle, either way


def rectangle(shape: tuple[int, int], coverage: float, draw: np.random.Generator) -> NDArray[np.bool_]:
    """A random rectangle of a given share of the image.

    Args:
        shape: (h, w) of the mask.
        coverage: share in (0, 1).
        draw: decides aspect and place.
    """
    height, width = shape
    limit = min(math.log(WIDEST), -math.log(coverage))  # both sides must fit
    aspect = math.exp(draw.uniform(-limit, limit))
    high = int(np.clip(round(height * math.sqrt(coverage / aspect)), 1, height))
    wide = int(np.clip(round(width * math.sqrt(coverage * aspect)), 1, width))
    top, left = draw.integers(0, height - high + 1), draw.integers(0, width - wide + 1)
    mask = np.zeros(shape, bool)
    mask[top : top + high, left : left + wide] = True
    return mask


def rectangles(source: Path, out: Path) -> None:
    """Write a random rectangle for every image of a mask file."""
    reader = MaskReader(source)
    rows = []
    for at, path in enumerate(sorted(reader)):
        made = rectangle(
            reader[path].shape, min(max(reader.coverage(path), 0.02), 0.98), np.random.default_rng([0, at])
        )
        low = float(reader.recipe["low_confidence"])
        size, confidence = reader.image_size(path), reader.confidence(path)
        rows.append(pack_mask(path, made, size, confidence=confidence, low_confidence=low))
    recipe = {"name": "rectangles", "coverage_of": reader.content_digest}
    write_masks(out, rows, {"recipe": recipe, "image_root": str(reader.image_root)})


def felzenszwalb(images: Path, out: Path) -> None:
    """Build masks of the largest region off the border, at 64 pixels."""
    about = "largest Felzenszwalb region off the border, for photographs of 64 pixels"
    recipe = get_recipe("felzenszwalb").replace(
        name="felzenszwalb64", about=about, work_size=160, region_scale=100.0, region_min_size=80
    )
    build_masks(images, out, recipe)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["rectangles", "felzenszwalb"])
    parser.add_argument("source", type=Path, help="a mask file; an image folder")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    (rectangles if options.kind == "rectangles" else felzenszwalb)(options.source, options.out)

"""Mask files for the mask ablation of the claims table, besides those of `hapicl masks build --recipe`.

    python benchmarks/ablation_masks.py rectangles masks.h5 rectangles.h5
    python benchmarks/ablation_masks.py felzenszwalb DIR felzenszwalb.h5
    python benchmarks/ablation_masks.py boxes masks.h5 tiny_dev100_train130/boxes/train

`rectangles` has no content: one random rectangle an image, with the coverage, confidence and flag of the
image's mask in another file. `felzenszwalb` is the recipe of that name with regions for photographs of 64
pixels: at the recipe's own (DetCon's, for 224 pixels and more) nearly every such mask is empty. `boxes` makes
nothing: it says how well the boxes around masks fit the objects' boxes of tiny ImageNet (text files, a line
an image: name, left, top, right, bottom, inclusive, of 64 x 64 pixels).
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

SIDE = 64  # pixels of tiny ImageNet's photographs
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


def box_agreement(masks: Path, boxes: Path) -> str:
    """Mean IoU of the boxes around masks with the objects' boxes, its standard error, the mean coverage."""
    reader = MaskReader(masks)
    rows = [line.split() for file in boxes.iterdir() for line in file.read_text().splitlines()]
    objects = {name: np.array([left, top, right, bottom], int) for name, left, top, right, bottom in rows}
    found = [
        box_iou(around(reader[path]), (objects[Path(path).name] + (0, 0, 1, 1)) / SIDE)
        for path in reader
        if Path(path).name in objects
    ]
    error = np.std(found) / math.sqrt(len(found))
    coverage = np.mean([reader.coverage(path) for path in reader])
    return f"{np.mean(found):.3f} +- {error:.3f} over {len(found)} images, mean coverage {coverage:.3f}"


def around(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(left, top, right, bottom) of the box around a mask, as shares of its sides; zeros of an empty mask."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return np.zeros(4)
    height, width = mask.shape
    return np.array(
        [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    )


def box_iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """IoU of two boxes (left, top, right, bottom)."""
    size = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0)
    common = float(size.prod())
    return common / float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - common)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["rectangles", "felzenszwalb", "boxes"])
    parser.add_argument("source", type=Path, help="a mask file; for felzenszwalb an image folder")
    parser.add_argument("other", type=Path, help="the mask file to write; for boxes a folder of text files")
    options = parser.parse_args()
    if options.kind == "boxes":
        print(box_agreement(options.source, options.other))
    else:
        (rectangles if options.kind == "rectangles" else felzenszwalb)(options.source, options.other)

"""COCO's annotation JSON: read, and refused with the row and the key that are not as the format has them."""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

Rows = Mapping[str, Mapping[str, Callable[[Any], bool]]]  # list's name -> key of a row -> whether it holds


def read_coco(path: Path, rows: Rows | None = None) -> dict[str, Any]:
    """Read the JSON and check its lists row by row.

    Args:
        path: the file.
        rows: what a row of each list must hold; None takes `OBJECT_ROWS`, for detection. `MASK_ROWS` asks for
            images with their size and segments only.

    Raises:
        UserError: if the file is missing, no JSON, or lacks a part.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a COCO annotation JSON") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON ({error}); give a COCO annotation JSON") from error
    rows = OBJECT_ROWS if rows is None else rows
    for part, wanted in rows.items():
        _check_rows(path, part, wanted, content.get(part) if isinstance(content, dict) else None)
    for part, key in (("images", "id"), ("categories", "id"), ("categories", "name")):
        if content.get(part) and part in rows:
            value, times = Counter(row[key] for row in content[part]).most_common(1)[0]
            if times > 1:
                raise UserError(f"{path}: {times} of its {part} have the {key} {value!r}; each needs its own")
    return dict(content)


def _check_rows(path: Path, part: str, wanted: Mapping[str, Callable[[Any], bool]], rows: Any) -> None:
    """Refuse a list that is missing, and the first row that is not as the format has it."""
    if not isinstance(rows, list):
        raise UserError(f"{path} lacks the list {part!r} of COCO's format; export the annotations again")
    for index, row in enumerate(rows):
        for key, holds in wanted.items():
            if not (isinstance(row, dict) and holds(row.get(key))):
                raise UserError(
                    f"{path}: {part}[{index}] lacks {key!r}, or it is not as COCO's format has it"
                )


def segment_fits(segment: Any, height: int, width: int) -> bool:
    """Whether a segmentation (polygons or run lengths) can be of an image of that size, pixels."""
    if isinstance(segment, dict):
        counts = segment["counts"]
        if list(segment["size"]) != [height, width]:
            return False
        if isinstance(counts, list):
            return all(_whole(count) and count >= 0 for count in counts) and sum(counts) == height * width
        return isinstance(counts, str)
    far = 10 * (height + width)  # a corner may lie outside, but drawing costs time and memory by the distance
    return all(
        len(ring) % 2 == 0 and all(_finite(value) and abs(value) <= far for value in ring) for ring in segment
    )


def segment_mask(segment: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Rasterise a segmentation (polygons or run lengths) to (H, W), as COCO's own tools do.

    Raises:
        UserError: if faster-coco-eval is not installed.
        KeyError, TypeError, ValueError: for a segmentation of another form.
    """
    coco = coco_masks()
    encoded = segment
    if isinstance(segment, list):
        encoded = coco.merge(coco.frPyObjects(segment, height, width))
    elif isinstance(segment["counts"], list):
        encoded = coco.frPyObjects(segment, height, width)
    return np.asarray(coco.decode(encoded)).astype(bool)


@functools.cache
def coco_masks() -> Any:
    """The mask functions of faster-coco-eval.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module("faster_coco_eval.core.mask")
    except ImportError as error:
        raise UserError("COCO masks need faster-coco-eval: pip install 'hapicl[eval]'") from error


def _whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _side(value: Any) -> bool:
    """Whether a value is a side of an image, pixels."""
    return _whole(value) and value > 0


def _finite(value: Any) -> bool:
    """Whether a value is a finite number that a float holds."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**53
    return isinstance(value, float) and math.isfinite(value)


def _box(value: Any) -> bool:
    """Whether a value is four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(_finite, value))


def is_segmentation(value: Any) -> bool:
    """Whether a value is absent, polygons of at least three corners, or run lengths."""
    if isinstance(value, dict):
        return isinstance(value.get("size"), list) and "counts" in value
    rings = [] if value is None else value
    return isinstance(rings, list) and all(isinstance(ring, list) and len(ring) >= 6 for ring in rings)


def _text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


# what a row of each list must hold
OBJECT_ROWS: Rows = {
    "images": {"id": _whole, "file_name": _text},
    "annotations": {"image_id": _whole, "category_id": _whole, "bbox": _box, "segmentation": is_segmentation},
    "categories": {"id": _whole, "name": _text},
}
# a broken segment costs its own image only, so any is taken here and looked at where it is drawn
MASK_ROWS: Rows = {
    "images": {"id": _whole, "file_name": _text, "height": _side, "width": _side},
    "annotations": {"image_id": _whole, "segmentation": lambda value: value is not None},
}

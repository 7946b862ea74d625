"""COCO's annotation JSON: read, and refused with the row and the key that are not as the format has them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError


def read_coco(path: Path) -> dict[str, Any]:
    """Read the JSON and check its three lists (`images`, `annotations`, `categories`) row by row.

    Raises:
        UserError: if the file is missing, no JSON, or lacks a part.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a COCO annotation JSON") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON ({error}); give a COCO annotation JSON") from error
    for part, wanted in _PARTS.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{path} lacks the list {part!r} of COCO's format; export the annotations again")
        for index, row in enumerate(rows):
            lacking = [
                key for key, holds in wanted.items() if not (isinstance(row, dict) and holds(row.get(key)))
            ]
            if lacking:
                raise UserError(
                    f"{path}: {part}[{index}] lacks {lacking[0]!r}, or it is not as COCO's format has it"
                )
    for part, key in (("images", "id"), ("categories", "id"), ("categories", "name")):
        value, times = (
            Counter(row[key] for row in content[part]).most_common(1)[0] if content[part] else ("", 1)
        )
        if times > 1:
            raise UserError(f"{path}: {times} of its {part} have the {key} {value!r}; each needs its own")
    return dict(content)


def segment_fits(segment: Any, height: int, width: int) -> bool:
    """Whether a segmentation (polygons or run lengths) can be of an image of that size, pixels."""
    if isinstance(segment, dict):
        counts = segment["counts"]
        if list(segment["size"]) != [height, width]:
            return False
        if isinstance(counts, list):
            return all(_whole(count) and count >= 0 for count in counts) and sum(counts) == height * width
        return isinstance(counts, str)
    return all(len(ring) % 2 == 0 and all(map(_finite, ring)) for ring in segment)


def _whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _box(value: Any) -> bool:
    """Whether a value is four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(_finite, value))


def _segmentation(value: Any) -> bool:
    """Whether a value is absent, polygons of at least three corners, or run lengths."""
    if isinstance(value, dict):
        return isinstance(value.get("size"), list) and "counts" in value
    rings = [] if value is None else value
    return isinstance(rings, list) and all(isinstance(ring, list) and len(ring) >= 6 for ring in rings)


def _text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


# what a row of each list must hold
_PARTS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "images": {"id": _whole, "file_name": _text},
    "annotations": {"image_id": _whole, "category_id": _whole, "bbox": _box, "segmentation": _segmentation},
    "categories": {"id": _whole, "name": _text},
}

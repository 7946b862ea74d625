"""Masks from COCO annotations."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common.atomic_files import refuse_unwritable
from ...common.coco import MASK_ROWS, coco_masks, is_segmentation, read_coco, segment_fits, segment_mask
from ...common.errors import UserError
from ...common.types import Mask
from ...data.images import open_originals
from ...data.images.decode import ImageError
from ...data.masks.writer import MaskRow, pack_mask, write_masks
from ..building.build import BuildSummary, summarize
from ..building.merge import describe
from .tree import reduced


def import_coco(
    source: str | os.PathLike[str],
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    long_side: int | None = None,
) -> BuildSummary:
    """Make a mask file from COCO annotations: an image's segments (RLE or polygons) together are foreground.

    Args:
        source: the JSON file.
        images: the folder, archives or URL that its `file_name`s are relative to; images without an
            annotation get an empty mask, images it does not name get a row that says so.
        out: the mask file to write.
        long_side: reduce larger masks to this long side, pixels.

    Raises:
        UserError: for a file that is no COCO annotation, and where faster-coco-eval is not installed.
    """
    start = time.monotonic()
    if Path(out).exists():
        raise UserError(f"{out} exists; choose another --out")
    refuse_unwritable(out)
    coco_masks()  # a missing library is told before the file is read
    content = read_coco(Path(source), MASK_ROWS)
    entries = {entry["file_name"]: entry for entry in content["images"]}
    segments: defaultdict[int, list[Any]] = defaultdict(list)
    for annotation in content["annotations"]:
        segments[annotation["image_id"]].append(annotation["segmentation"])
    originals = open_originals(images)
    rows = []
    for path in originals.paths():
        try:
            size = originals.image_size(path)
            mask = reduced(_mask(path, size, entries, segments), long_side)
            rows.append(pack_mask(path, mask, size, file_bytes=originals.file_bytes(path)))
        except ImageError as error:
            rows.append(MaskRow(path=path, reason=error.reason))
    if all(row.reason for row in rows):
        named = [row for row in rows if row.path in entries]
        if not named:
            raise UserError(f"{source} names none of the {len(rows)} images in {originals.location}")
        raise UserError(
            f"{source} names {len(named)} of the {len(rows)} images in {originals.location} and gives none "
            f"of them a mask; the first is {named[0].path}: {named[0].reason}"
        )
    recipe = {"name": "imported", "from": str(Path(source).resolve()), "long_side": long_side}
    write_masks(out, rows, describe(recipe, originals.location))
    return summarize(Path(out), len(rows), start)


def _mask(path: str, size: tuple[int, int], entries: dict[str, Any], segments: dict[int, list[Any]]) -> Mask:
    """Mask of one image, (H, W) bool.

    Raises:
        ImageError: if the annotations do not name it, give it another size, or have a bad segment of it.
    """
    if path not in entries:
        raise ImageError(path, "not named in the annotations")
    coco_size = (entries[path]["height"], entries[path]["width"])
    if coco_size != size:
        raise ImageError(path, f"{size[0]} x {size[1]} pixels upright, but the annotations say {coco_size}")
    return _union(segments.get(entries[path]["id"], []), size, path)


def _union(segments: Sequence[Any], size: tuple[int, int], path: str) -> Mask:
    """Union of COCO segments, (H, W) bool."""
    mask = np.zeros(size, bool)
    for segment in segments:
        if not (is_segmentation(segment) and segment_fits(segment, *size)):
            raise ImageError(path, "a segment that is neither polygons nor run lengths of its image")
        if segment == []:  # nothing is marked
            continue
        try:
            mask |= segment_mask(segment, *size).reshape(size)
        except (RuntimeError, ValueError) as error:  # what the decoder of compressed run lengths raises
            raise ImageError(path, f"a segment whose run lengths are damaged: {error}") from error
    return mask

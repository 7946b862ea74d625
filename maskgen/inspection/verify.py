"""Checking a mask file against itself and against its images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ...data.images import open_originals
from ...data.images.decode import ImageError
from ...data.images.store import OriginalImages
from ...data.masks.format import COLUMNS, MaskError, MaskStatus
from ...data.masks.reader import MaskReader
from ...data.masks.writer import blob_digest, content_digest
from ...data.path_keys import is_safe_key


@dataclass
class VerifyReport:
    """What `verify_masks` found; no problems means that the file is what was written.

    Attributes:
        rows: rows in the file.
        masks: rows that hold a mask, each of which was unpacked and compared with its crc32.
        images: image headers read, 0 without an image folder.
        problems: one line each.
        new_images: images in the folder without a row; a reason to update, not a fault.
    """

    rows: int = 0
    masks: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)
    new_images: list[str] = field(default_factory=list)


def verify_masks(
    masks: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check the digests, every mask's crc32 and, with `images`, every recorded image size.

    Args:
        masks: the mask file.
        images: the image folder, archives or URL; of a folder's files only headers are read.
        progress: called with (rows done, rows) now and then.

    Raises:
        UserError: if the file is so damaged, or so foreign, that it cannot be opened.
    """
    reader = MaskReader(masks)
    report = VerifyReport(rows=len(reader))
    report.problems += _digest_problems(reader)
    reasons = reader.reasons()
    for row, path in enumerate(reader.paths):
        if progress is not None and row % 512 == 0:
            progress(row, report.rows)
        report.masks += path not in reasons
        report.problems += _row_problems(reader, row, path, reasons.get(path))
    if progress is not None:
        progress(report.rows, report.rows)
    if images is not None:
        _compare_images(reader, open_originals(images), reasons, report)
    if not reader.attributes["complete"]:
        report.problems.append(f"{reader.path} is not complete; run the same `hapicl masks build` again")
    return report


def _digest_problems(reader: MaskReader) -> Iterator[str]:
    """Digests and the order of the keys."""
    columns = {name: reader.column(name) for name in COLUMNS}
    if content_digest(columns, reader.recipe) != reader.attributes["content_digest"]:
        yield "the digest of the rows does not match: a column or the recipe has changed since it was written"
    if blob_digest(reader.blob_pieces()) != reader.attributes["blob_digest"]:
        yield "the digest of the stored masks does not match: bytes have changed since they were written"
    keys = reader.column("path")
    if (keys[1:] <= keys[:-1]).any():
        yield "the paths are not sorted, or one is there twice: some cannot be found"
    yield from (f"unsafe path {key!r}" for key in keys.tolist() if not is_safe_key(key))


def _row_problems(reader: MaskReader, row: int, path: str, reason: str | None) -> Iterator[str]:
    """One row against its own crc32 and status."""
    if reason is not None:
        if reader.status(path) is not MaskStatus.UNREADABLE:
            yield f"{path}: has a reason ({reason}) but also a status {reader.status(path)}"
        return
    try:
        reader.packed(row)  # compares with its crc32
    except MaskError as error:
        yield str(error)


def _compare_images(
    reader: MaskReader, originals: OriginalImages, reasons: dict[str, str], report: VerifyReport
) -> None:
    """Compare recorded sizes with the images' headers."""
    there = set(originals.paths())
    report.new_images = sorted(there.difference(reader.paths))
    sizes = np.asarray(reader.column("image_size"))
    for path, recorded in zip(reader.paths, map(tuple, sizes.tolist()), strict=True):
        if path not in there:
            report.problems.append(f"{path}: its image is gone from {originals.location}")
            continue
        if path in reasons:
            continue
        report.images += 1
        try:
            size = originals.image_size(path)
        except ImageError as error:
            report.problems.append(f"{path}: its image cannot be read any more: {error.reason}")
            continue
        if size != recorded:
            report.problems.append(
                f"{path}: its image is {size[0]} x {size[1]} now, was {recorded[0]} x {recorded[1]}"
            )

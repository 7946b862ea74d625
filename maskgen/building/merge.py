"""Joining part files, shards and mask files into one mask file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...common.atomic_files import refuse_unwritable
from ...common.errors import UserError
from ...data.build_folder import paths_digest
from ...data.images.store import location_of
from ...data.masks.reader import MaskReader
from ...data.masks.writer import join_masks
from ...data.path_keys import find_row
from .plan import PartFiles

_LIBRARIES = ("hapicl", "numpy", "scikit-image", "scikit-learn", "numba", "h5py", "pillow")


def describe(
    recipe: dict[str, Any],
    image_root: str,
    *,
    complete: bool = True,
    worker_seconds: float = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """Return what a mask file says of itself: how it was made, with what, and when."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "recipe": recipe,
        "image_root": image_root,
        "complete": complete,
        "worker_seconds": worker_seconds,
        "libraries": {**libraries, "opencv": cv2.__version__},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **more,
    }


def join_part_files(out: Path, parts: PartFiles) -> int:
    """Join all part files of a finished plan (and the file it adds to) into `out`; they stay.

    Returns:
        Rows written.

    Raises:
        UserError: if part files are missing or do not belong to the plan.
    """
    refuse_unwritable(out)
    plan = parts.plan()
    if plan is None:
        raise UserError(f"nothing to join: {parts.path} holds no plan; run `hapicl masks build` first")
    expected, there = range(-(-plan["images"] // plan["part_images"])), parts.finished()
    missing = sorted(set(expected) - set(there))
    if missing:
        raise UserError(
            f"{len(missing)} of {len(expected)} part files are missing in {parts.path} (first: "
            f"{missing[0]}); run the shards that are not finished again"
        )
    readers = parts.readers()
    if paths_digest(path for reader in readers for path in reader.paths) != plan["paths_digest"]:
        raise UserError(
            f"the part files in {parts.path} do not belong to its plan; put back those that do, or build "
            "with another --out"
        )
    return _join(out, parts, plan, readers, complete=True)


def save_unfinished(out: Path, parts: PartFiles) -> int:
    """Join the part files that are there into a usable `out` that says it is not complete.

    Rows of the file that the plan adds to are kept. Nothing is written where there is nothing to keep.

    Returns:
        Rows written.
    """
    plan = parts.plan()
    readers = parts.readers()
    if plan is None or not readers:
        return 0
    return _join(out, parts, plan, readers, complete=False)


def _join(
    out: Path, parts: PartFiles, plan: dict[str, Any], readers: Sequence[MaskReader], *, complete: bool
) -> int:
    """Join some part files with the kept rows of the file that the plan adds to."""
    sources, keep = list(readers), [np.ones(len(reader), bool) for reader in readers]
    if plan["base"]:
        base = MaskReader(out)
        if base.attributes["content_digest"] != plan["base"]:
            raise UserError(
                f"{out} is not the file that {parts.path} adds to; put that file back, or move {parts.path} "
                "away and update again"
            )
        sources.append(base)
        keep.append(kept_rows(base, plan["drop"]))
    seconds = sum(float(source.attributes["worker_seconds"]) for source in sources)
    description = describe(plan["recipe"], plan["image_root"], complete=complete, worker_seconds=seconds)
    return join_masks(out, sources, description, keep=keep)


def kept_rows(base: MaskReader, drop: Iterable[str]) -> NDArray[np.bool_]:
    """(N,) bool, False for the rows of some paths."""
    keep = np.ones(len(base), bool)
    rows = [find_row(base.column("path"), path) for path in drop]
    keep[[row for row in rows if row is not None]] = False
    return keep


def merge_files(
    out: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]], *, image_root: str | None = None
) -> int:
    """Join mask files (or folders of part files) that were made by the same recipe into one.

    Args:
        out: the file to write.
        sources: files, or `.parts` folders of shards that ran on other disks.
        image_root: the image folder to record; needed where the sources name different ones.

    Returns:
        Rows written.

    Raises:
        UserError: if recipes or image folders differ, or two sources disagree on an image.
    """
    refuse_unwritable(out)
    readers = [reader for source in sources for reader in _readers(Path(source))]
    if not readers:
        raise UserError("nothing to join: give mask files or .parts folders with finished part files")
    first = readers[0]
    for reader in readers[1:]:
        if reader.recipe != first.recipe:
            raise UserError(
                f"{first.path} and {reader.path} were made by different recipes; they cannot be joined"
            )
        if image_root is None and reader.image_root != first.image_root:
            raise UserError(
                f"{first.path} names the image folder {first.image_root}, {reader.path} names "
                f"{reader.image_root}; say with --images which to record"
            )
    seconds = sum(float(reader.attributes["worker_seconds"]) for reader in readers)
    root = first.image_root if image_root is None else location_of(image_root)
    with PartFiles(Path(out)).locked():  # as a build of `out` does
        return join_masks(out, readers, describe(first.recipe, root, worker_seconds=seconds))


def _readers(source: Path) -> list[MaskReader]:
    """The mask files that a source stands for."""
    if source.is_dir():
        return [MaskReader(path) for path in sorted(source.glob("part-*.h5"))]
    return [MaskReader(source)]

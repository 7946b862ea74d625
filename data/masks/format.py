"""The mask file: one HDF5 file with the foreground mask of every image, the only contract between the stages.

Rows are sorted by the image's path relative to the image root; every dataset is contiguous and unfiltered, so
that after one look at the HDF5 header a reader works on a memory map: no HDF5 call, no handle, one page cache
for all processes. `reader.py` reads it, `writer.py` writes it; here is what both agree on.

    /path        (N,) bytes, sorted      /image_size (N, 2) int32, upright height and width in pixels
    /mask_size   (N, 2) uint16           /blob       uint8, all masks one after another
    /offset      (N + 1,) int64          /crc32      (N,) uint32 of the packed, uncompressed bits
    /coverage, /confidence (N,) float32  /status     (N,) uint8, index into `MaskStatus`
    /file_bytes  (N,) int64              /reason_row (F,) int64, /reason (F,) bytes: why a row has no mask

Shape legend: N images, F rows with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UserError
from ..path_keys import decode_path, is_safe_key

FORMAT = "hapicl masks"
VERSION = 1
# Parameters of a recipe that had another name in files written before: the name today, and the first one.
_FIRST_NAMES = {"iterations": "looks"}
COLUMNS = {
    "path": "S",
    "image_size": "<i4",
    "mask_size": "<u2",
    "offset": "<i8",
    "coverage": "<f4",
    "confidence": "<f4",
    "status": "|u1",
    "crc32": "<u4",
    "file_bytes": "<i8",
    "reason_row": "<i8",
    "reason": "S",
}
MAX_MASK_SIDE = 4096  # pixels; keeps a damaged file from asking for more than 2 MB of bits


class MaskError(UserError):
    """A mask that is not there, damaged, or of another image."""


class MaskStatus(StrEnum):
    """What a row holds; stored as its index in this order."""

    OK = "ok"
    EMPTY = "empty"
    FULL = "full"
    UNREADABLE = "unreadable"
    LOW_CONFIDENCE = "low_confidence"


STATUSES = tuple(MaskStatus)


def read_recipe(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe by the names of today; whatever reads recipes (files, plans) calls this."""
    today = {first: name for name, first in _FIRST_NAMES.items()}
    return {today.get(name, name): value for name, value in recorded.items()}


def digested_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe by the names that its parameters had first: equal masks keep an equal digest."""
    return {_FIRST_NAMES.get(name, name): value for name, value in recipe.items()}


def check_columns(data: Mapping[str, NDArray[Any]], path: str) -> None:
    """Refuse inconsistent columns and keys that would leave the image folder.

    Raises:
        MaskError: says what is wrong.
    """
    keys, offset = data["path"], data["offset"]
    per_row = ("image_size", "mask_size", "coverage", "confidence", "status", "crc32", "file_bytes")
    wrong = [name for name, kind in COLUMNS.items() if data[name].dtype.kind != np.dtype(kind).kind]
    if wrong or any(len(data[name]) != len(keys) for name in per_row) or len(offset) != len(keys) + 1:
        raise MaskError(f"{path} is damaged: its columns do not belong together {wrong or ''}")
    if offset[0] != 0 or offset[-1] != len(data["blob"]) or (np.diff(offset) < 0).any():
        raise MaskError(f"{path} is damaged: its offsets do not fit its {len(data['blob'])} bytes of masks")
    if len(keys) == 0:
        return
    if int(data["status"].max()) >= len(STATUSES):
        raise MaskError(f"{path} is damaged: it holds a status that this version does not know")
    first_letters = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), -1)[:, 0]
    # a quick look at all bytes at once; only a file with a doubled dot somewhere is read key by key
    if b".." in keys.tobytes() or np.isin(first_letters, (0, ord("/"))).any():
        unsafe = next((key for key in keys.tolist() if not is_safe_key(key)), None)
        if unsafe is not None:
            raise MaskError(
                f"{path} is refused: its key {decode_path(unsafe)!r} leads outside the image folder"
            )

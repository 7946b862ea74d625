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

import json
import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UserError
from ..path_keys import decode_path, encode_path, is_safe_key

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
MAX_IMAGE_SIDE = 50_000_000  # pixels: an image of one row has at most so many

# What a description may lack, and what its parts must be.
_OPTIONAL = {"complete": True, "worker_seconds": 0.0, "libraries": {}, "created": ""}
_DESCRIPTION: dict[str, Callable[[Any], bool]] = {
    "recipe": lambda value: isinstance(value, dict),
    "image_root": lambda value: isinstance(value, str) and _is_path(value),
    "complete": lambda value: isinstance(value, bool),
    "worker_seconds": lambda value: _is_number(value) and 0 <= value < math.inf,
    "libraries": lambda value: isinstance(value, dict),
    "created": lambda value: isinstance(value, str),
}


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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_path(text: str) -> bool:
    """Whether the system can be asked for a file of that name."""
    try:
        return bool(text) and b"\0" not in encode_path(text)
    except UnicodeEncodeError:
        return False


def read_description(text: object, path: str) -> dict[str, Any]:
    """Read what a mask file says of itself, its recipe by the names of today.

    Args:
        text: the attribute `description`, JSON.
        path: the file, for errors.

    Raises:
        MaskError: if it is no JSON, lacks something, or something is of another kind.
    """
    try:
        description = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise MaskError(f"{path} is damaged: its description is no JSON ({error})") from error
    if not isinstance(description, dict):
        raise MaskError(f"{path} is damaged: it does not say how it was made")
    description = {**_OPTIONAL, **description}
    wrong = [name for name, fits in _DESCRIPTION.items() if not fits(description.get(name))]
    if wrong:
        raise MaskError(f"{path} is damaged: {wrong[0]!r} in its description is missing or of another kind")
    return {**description, "recipe": read_recipe(description["recipe"])}


def check_columns(data: Mapping[str, NDArray[Any]], path: str) -> None:
    """Refuse inconsistent columns, values out of range, and keys that would leave the image folder.

    Raises:
        MaskError: says what is wrong.
    """
    count, reasons, stored = data["path"].size, data["reason"].size, data["blob"].size
    shapes = {"image_size": (count, 2), "mask_size": (count, 2), "offset": (count + 1,), "blob": (stored,)}
    shapes |= {"reason_row": (reasons,), "reason": (reasons,)}
    wrong = [name for name in COLUMNS if data[name].shape != shapes.get(name, (count,))]
    if wrong or data["blob"].shape != (stored,):
        raise MaskError(f"{path} is damaged: its columns do not belong together {wrong or ''}")
    if count:
        _check_values(data, path)
        _check_keys(data["path"], path)


def _check_values(data: Mapping[str, NDArray[Any]], path: str) -> None:
    """Refuse numbers that no build writes."""
    offset, rows = data["offset"], data["reason_row"]
    lengths = np.diff(offset)
    if offset[0] != 0 or offset[-1] != len(data["blob"]) or (lengths < 0).any():
        raise MaskError(f"{path} is damaged: its offsets do not fit its {len(data['blob'])} bytes of masks")
    if int(data["status"].max()) >= len(STATUSES):
        raise MaskError(f"{path} is damaged: it holds a status that this version does not know")
    if len(rows) and (rows[0] < 0 or rows[-1] >= len(lengths) or (np.diff(rows) <= 0).any()):
        raise MaskError(f"{path} is damaged: it gives reasons for rows that it does not have")
    for name in ("coverage", "confidence"):
        if (data[name] < 0).any() or (data[name] > 1).any():  # nan, not known, is neither
            raise MaskError(f"{path} is damaged: it holds a {name} outside [0, 1]")
    for name, largest in (("image_size", MAX_IMAGE_SIDE), ("mask_size", MAX_MASK_SIDE)):
        sizes = data[name]
        nothing = (sizes == 0).any(axis=1) & (lengths > 0)
        if int(sizes.min()) < 0 or int(sizes.max()) > largest or nothing.any():
            raise MaskError(f"{path} is damaged: it holds an {name} that no image can have")


def _check_keys(keys: NDArray[np.bytes_], path: str) -> None:
    """Refuse keys that would leave the image folder, or that no file can have."""
    letters = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), -1)
    ended = letters[:, :-1] == 0
    ended &= letters[:, 1:] != 0
    # a quick look at all bytes at once; only a file with a doubled dot somewhere is read key by key
    if b".." in keys.tobytes() or np.isin(letters[:, 0], (0, ord("/"), ord("."))).any() or ended.any():
        unsafe = next((key for key in keys.tolist() if not is_safe_key(key)), None)
        if unsafe is not None:
            raise MaskError(
                f"{path} is refused: its key {decode_path(unsafe)!r} leads outside the image folder"
            )

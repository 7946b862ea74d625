"""Which images a run trains on, and where their masks lie: decided once, before the first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...common.errors import UserError
from ...common.terminal.printable import printable_name
from ..images.store import ImageStore
from ..masks.format import STATUSES, MaskStatus
from ..masks.reader import MaskReader
from ..path_keys import decode_path, encode_path
from .batch import MissingMasks

logger = logging.getLogger("hapicl.data")
NAMED = 5  # paths that a message names


@dataclass(frozen=True)
class Selection:
    """The images of a run.

    Attributes:
        paths: (N,) sorted bytes; a numpy array, since a list of a million strings is copied into every
            worker as its reference counts change.
        rows: (N,) int64, the row of each image's mask in the mask file; -1 where it goes without.
        left_out: how many were left out for want of a mask or as unreadable.
        low_confidence: how many were left out because their mask is flagged.
    """

    paths: npt.NDArray[np.bytes_]
    rows: npt.NDArray[np.int64]
    left_out: int = 0
    low_confidence: int = 0

    @property
    def has_mask(self) -> npt.NDArray[np.bool_]:
        """(N,) whether an image has a mask."""
        return self.rows >= 0


def select_images(
    store: ImageStore | None,
    masks: MaskReader | None,
    *,
    missing: MissingMasks = "error",
    use_low_confidence: bool = True,
    limit: int | None = None,
) -> Selection:
    """Match images and masks.

    Images that the mask file records as unreadable are left out, with a warning that says how many.

    Args:
        store: the images; None takes the paths of the mask file.
        masks: the mask file; None for methods that use no masks.
        missing: what to do about an image that the mask file does not hold: refuse, leave it out, or
            train on it without a mask.
        use_low_confidence: keep images whose mask is flagged low_confidence, or leave them out.
        limit: take only the first so many paths.

    Raises:
        UserError: for no images, none that is left, or missing masks under "error"; says how many and names
            a few.
    """
    listed = masks.column("path") if store is None and masks is not None else _sorted_keys(store)
    paths = np.asarray(listed[:limit])
    if len(paths) == 0:
        where = f" in {store.location}" if store is not None else ""
        raise UserError(f"no images found{where}: give a folder that holds images, at any depth")
    if masks is None:
        return Selection(paths, np.full(len(paths), -1))
    rows = _rows(paths, masks.column("path"))
    known = rows >= 0
    status = np.where(known, masks.column("status")[np.maximum(rows, 0)], len(STATUSES))
    unreadable = status == STATUSES.index(MaskStatus.UNREADABLE)
    _report(paths[~known], paths[unreadable], masks.path, missing)
    readable = ~unreadable if missing == "instance-only" else known & ~unreadable
    if not readable.any():
        raise UserError(
            f"{masks.path} has a mask for none of the {len(paths)} images; are both of one folder?"
        )
    flagged = status == STATUSES.index(MaskStatus.LOW_CONFIDENCE)
    kept = readable if use_low_confidence else readable & ~flagged
    if not kept.any():
        raise UserError(
            f"{masks.path} flags every mask of the {len(paths)} images low_confidence; "
            "keep them with use_low_confidence=true"
        )
    return Selection(
        paths[kept],
        rows[kept],
        left_out=int((~readable).sum()),
        low_confidence=int((readable & ~kept).sum()),
    )


def _sorted_keys(store: ImageStore | None) -> npt.NDArray[np.bytes_]:
    """The store's paths as sorted bytes."""
    if store is None:
        raise UserError(
            "no images: give a folder of images, a packed file, or a mask file that names its folder"
        )
    keys = [encode_path(path) for path in store.paths()]
    return np.sort(np.array(keys, dtype=np.bytes_)) if keys else np.array([], dtype="S1")


def _rows(paths: npt.NDArray[np.bytes_], keys: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """Row of each path among the sorted keys, -1 where there is none."""
    if len(keys) == 0:
        return np.full(len(paths), -1)
    rows = np.minimum(np.searchsorted(keys, paths), len(keys) - 1)
    return np.where(keys[rows] == paths, rows, -1)


def _report(
    missing: npt.NDArray[np.bytes_],
    unreadable: npt.NDArray[np.bytes_],
    mask_file: str,
    policy: MissingMasks,
) -> None:
    """Refuse or log missing masks, log unreadable images."""
    if len(unreadable):
        logger.warning(
            "%d images that %s records as unreadable are left out: %s",
            len(unreadable),
            mask_file,
            _few(unreadable),
        )
    if len(missing) == 0:
        return
    if policy == "error":
        raise UserError(
            f"{mask_file} has no mask for {len(missing)} of the images: {_few(missing)}. Add them with "
            "`hapicl masks build --update`, or choose --missing-masks skip (leave these images out) or "
            "instance-only (train on them without a mask)"
        )
    logger.warning(
        "%d images have no mask in %s and %s: %s",
        len(missing),
        mask_file,
        "are left out" if policy == "skip" else "are trained on without one",
        _few(missing),
    )


def _few(paths: npt.NDArray[np.bytes_]) -> str:
    """The first paths, for a message."""
    names = [printable_name(decode_path(bytes(path))) for path in paths[:NAMED]]
    return ", ".join(names) + (", ..." if len(paths) > NAMED else "")

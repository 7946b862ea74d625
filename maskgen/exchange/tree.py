"""Masks from elsewhere and to elsewhere, as trees of PNG or npz files.

HARL's masks are such a tree of PNG files, one per image with the image's path and stem (the loader of
https://github.com/TranNhiem/Heuristic_Attention_Represenation_Learning_SSL_Pytorch).
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.errors import UserError
from ...common.types import Mask
from ...data.images import open_originals
from ...data.images.decode import ImageError, read_header, read_image
from ...data.images.store import OriginalImages
from ...data.masks.format import MAX_MASK_SIDE
from ...data.masks.reader import MaskReader
from ...data.masks.writer import MaskRow, pack_mask
from ..building.build import BuildSummary, Progress, build_rows
from ..building.settings import BuildSettings

_MASK_SUFFIXES = (".png", ".npz")
LONGEST_NAME = 255  # bytes of a file's name that every common file system takes
# what numpy and zipfile raise for files that are damaged, crafted, encrypted or packed in another way
_NPZ_DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, SyntaxError, TokenError,
               BadZipFile, zlib.error)  # fmt: skip


@dataclass(frozen=True)
class TreeRows:
    """Makes rows from a folder of masks that mirrors the image folder.

    Attributes:
        masks: absolute path of that folder; `a/b.JPEG` has its mask in `a/b.png`, `a/b.JPEG.png` or `.npz`.
        long_side: larger masks are reduced to this long side, pixels; None keeps them.
    """

    masks: str
    long_side: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return where the masks came from."""
        return {"name": "imported", "from": self.masks, "long_side": self.long_side}

    def row(self, images: OriginalImages, path: str) -> MaskRow:
        """Make a row of an image's imported mask; says why where there is none.

        Raises:
            UserError: if the image was listed but is gone.
        """
        data = b""
        try:
            data = images.read_bytes(path)
            size = read_header(data, path).size
            file = self.mask_file(path)
            if file is None:
                raise ImageError(path, f"no mask for it in {self.masks}")
            mask = read_mask(file, path)
        except ImageError as error:
            return MaskRow(path=path, reason=error.reason, file_bytes=len(data))
        if aspect_differs(mask.shape, size):
            reason = (
                f"its mask has another shape: {mask.shape[0]} x {mask.shape[1]} for {size[0]} x {size[1]}"
            )
            return MaskRow(path=path, reason=reason, file_bytes=len(data))
        return pack_mask(path, reduced(mask, self.long_side), size, file_bytes=len(data))

    def mask_file(self, path: str) -> Path | None:
        """Return the mask file of an image, if there is one."""
        stem = PurePosixPath(path).with_suffix("")
        candidates = [
            Path(self.masks, f"{name}{suffix}") for name in (stem, path) for suffix in _MASK_SUFFIXES
        ]
        # os.path says no where a name is too long or a folder may not be read; Path would raise
        return next((file for file in candidates if os.path.isfile(file)), None)  # noqa: PTH113


def import_tree(
    source: str | os.PathLike[str],
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    long_side: int | None = None,
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
) -> BuildSummary:
    """Make a mask file from a folder of PNG or npz masks that mirrors the image folder.

    In a PNG, or an array in an npz, what exceeds half of the largest value is foreground. Images without a
    mask become rows that say so. An interrupted import continues as a build does.

    Args:
        source: the folder of masks.
        images: the image folder, archives or URL.
        out: the mask file to write.
        long_side: reduce larger masks to this long side, pixels.
        settings, progress: as for `build_masks`.

    Raises:
        UserError: if a folder is missing, or no image has a mask.
    """
    folder = Path(source).resolve()
    if not folder.is_dir():
        raise UserError(f"no folder of masks {folder}; give one that mirrors the image folder")
    maker = TreeRows(str(folder), long_side)
    originals = open_originals(images)
    paths = originals.paths()
    if paths and all(maker.mask_file(path) is None for path in paths):
        raise UserError(
            f"none of the {len(paths)} images in {images} has a mask in {folder}; for {paths[0]} it would be "
            f"{PurePosixPath(paths[0]).with_suffix('.png')}"
        )
    return build_rows(originals, out, maker, settings, paths=paths, progress=progress)


def export_tree(
    masks: str | os.PathLike[str], out: str | os.PathLike[str], *, stored_size: bool = False
) -> Iterator[str]:
    """Write each mask as a PNG of 0 and 255, in a tree like the images'; yields each path when written.

    `a/b.JPEG` becomes `a/b.png`, or `a/b.JPEG.png` where two images share a stem. Rows without a mask are
    left out.

    Args:
        masks: the mask file.
        out: the folder; must be empty or not exist.
        stored_size: at the stored size instead of the image's own.

    Raises:
        UserError: if the folder is not empty or cannot be written.
    """
    reader, folder = MaskReader(masks), Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; choose another --out")
    reasons = reader.reasons()
    names = export_names(reader.paths)
    long = next((name for name in names if max(map(len, os.fsencode(name).split(b"/"))) > LONGEST_NAME), None)
    if long is not None:
        raise UserError(f"{long} is too long a name for a file; rename that image and build its mask again")
    refuse_unwritable(folder / names[0])
    for path, name in zip(reader.paths, names, strict=True):
        if path in reasons:
            continue
        mask = reader[path]
        if not stored_size:
            mask = resize_mask(mask, reader.image_size(path))
        encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)[1]
        with atomic_write(folder / name) as part:
            part.write_bytes(encoded.tobytes())
        yield path


def export_names(paths: Sequence[str]) -> list[str]:
    """PNG names for images: the stem, or the whole name where a stem is not unique in its folder."""
    stems = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    amounts: defaultdict[str, int] = defaultdict(int)
    for stem in stems:
        amounts[stem] += 1
    return [
        f"{stem}.png" if amounts[stem] == 1 else f"{path}.png"
        for stem, path in zip(stems, paths, strict=True)
    ]


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Bring a mask to (H, W) pixels: area average when smaller, linear when larger, then above one half."""
    shrinks = size[0] < mask.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=interpolation)
    return np.asarray(resized > 0.5)


def binary(values: NDArray[Any]) -> Mask:
    """Foreground of a grey map: above half of its largest value."""
    return np.asarray(values > values.max() / 2)


def read_mask(file: Path, path: str) -> Mask:
    """Read an image's mask from a PNG or npz.

    Raises:
        ImageError: about the image `path`, saying that it is its mask that cannot be used.
    """
    try:
        return binary(read_npz(file) if file.suffix == ".npz" else read_image(file)[:, :, 0])
    except ImageError as error:
        raise ImageError(path, f"its mask {file.name}: {error.reason}") from error


def read_npz(file: Path) -> NDArray[Any]:
    """Read the only array of an npz, or the one called `mask`. Pickled objects are never loaded.

    Raises:
        ImageError: if there is no such array, or it is not (H, W) of finite numbers.
    """
    try:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, NpzFile):
            raise ImageError(str(file), "holds a bare array; save it with np.savez")
        with arrays:
            names = arrays.files
            name = "mask" if "mask" in names else names[0] if len(names) == 1 else None
            values = None if name is None else np.squeeze(arrays[name])
    except ImageError:
        raise
    except _NPZ_DAMAGE as error:
        raise ImageError(str(file), f"cannot be read as npz: {error}") from error
    if values is None:
        raise ImageError(str(file), f"holds {names}; expected one array, or one called `mask`")
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf":
        raise ImageError(str(file), f"an array of {values.dtype} of shape {values.shape} is no mask")
    if not np.isfinite(values).all():
        raise ImageError(str(file), "holds values that are no numbers (nan or inf)")
    return values


def aspect_differs(mask: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Say whether a mask cannot be an image of this size at another scale, give or take a pixel."""
    height, width = mask
    return abs(height * size[1] - width * size[0]) > max(height, width, *size)


def reduced(mask: Mask, long_side: int | None) -> Mask:
    """Return a mask at a long side of at most so many pixels."""
    factor = min(long_side or MAX_MASK_SIDE, MAX_MASK_SIDE) / max(mask.shape)
    if factor >= 1:
        return mask
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    return resize_mask(mask, (height, width))

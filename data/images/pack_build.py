"""Making an image pack: in parts, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import joblib
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...common.config import Settings
from ...common.errors import UserError
from ..build_folder import BuildFolder, paths_digest
from ..build_workers import default_workers, local_workers, run_in_workers
from ..path_keys import encode_path
from . import open_originals
from .decode import MAX_PIXELS, Header, ImageError, decode_image, read_header
from .pack import PACK, ImagePack, PackRow, columns_of, file_kind, write_pack
from .store import OriginalImages
from .tiff import TiffError, read_bands

PART_IMAGES = 256  # about 30 MB of ImageNet originals
MOST_DEATHS = 3  # of workers before a part is finished
Progress = Callable[[int, int], None]  # images done, images in all


class PackSettings(Settings):
    """How images are stored.

    Attributes:
        short_side: larger images are stored at this short side, in pixels; None keeps every file's own bytes.
        quality: JPEG quality of what is encoded anew.
    """

    short_side: Annotated[int, Field(ge=16, le=65_535)] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] = 90


@dataclass(frozen=True)
class PackSummary:
    """What a call did.

    Attributes:
        images: how many are in the file.
        size: of the file, bytes.
        unreadable: path -> reason of images left out.
        already_finished: nothing had to be done.
    """

    images: int
    size: int
    unreadable: dict[str, str]
    already_finished: bool = False


def pack_images(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: PackSettings | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PackSummary:
    """Pack the images of a folder, or of archives, into one file.

    Run again after an interruption, it takes up the finished parts. Images that cannot be decoded are left
    out and listed in the file's description.

    Args:
        root: the image folder, or whatever else `open_originals` opens.
        out: the file to write.
        settings: how to store them.
        workers: processes; None takes the cores this process may use.
        progress: called after each part.

    Raises:
        UserError: for an empty folder, a file of other images or settings at `out`, or a disk that is full.
    """
    settings = settings or PackSettings()
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give at least 1")
    target, images = Path(out), open_originals(root)
    paths = images.paths()
    if not paths:
        raise UserError(f"no images in {root}; give a folder that holds images, at any depth")
    plan = {
        "image_root": images.location,
        "short_side": settings.short_side,
        "quality": settings.quality,
        "images": len(paths),
        "files_digest": paths_digest(f"{path}\0{images.file_bytes(path)}" for path in paths),
    }
    if target.exists():
        return _finished(target, plan)
    folder = BuildFolder(target)
    with folder.locked():
        if target.exists():  # finished by another process since it was looked at
            return _finished(target, plan)
        folder.go_on(plan, lambda begun: _different(begun, plan), "an unfinished pack with")
        _make_parts(folder, images, paths, settings, workers, progress)
        summary = _join(folder, target, plan)
        folder.remove()
    return summary


def _finished(target: Path, plan: dict[str, Any]) -> PackSummary:
    """Say that the file is there, or refuse another one."""
    if (kind := file_kind(target)) != PACK:
        raise UserError(f"{target} is there already and is {kind}; choose another --out")
    pack = ImagePack(target)
    if different := _different(pack.description, plan):
        raise UserError(f"{target} was made with {different}; choose another --out")
    return PackSummary(len(pack), target.stat().st_size, pack.description["unreadable"], True)


def _different(made: dict[str, Any], plan: dict[str, Any]) -> str:
    """What sets a pack apart from the one that is asked for, in words; empty if nothing does."""
    words = {
        "image_root": "another image folder",
        "short_side": "another --short-side",
        "quality": "another --quality",
        "files_digest": "other images (their names, number or sizes in bytes)",
    }
    return " and ".join(word for key, word in words.items() if made.get(key) != plan[key])


def _make_parts(
    folder: BuildFolder,
    images: OriginalImages,
    paths: Sequence[str],
    settings: PackSettings,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """Make the parts that are not there yet; a worker writes its part itself.

    Raises:
        UserError: if workers die again and again; what is finished is kept.
    """
    count = -(-len(paths) // PART_IMAGES)

    def images_of(number: int) -> Sequence[str]:
        return paths[number * PART_IMAGES : (number + 1) * PART_IMAGES]

    deaths = 0  # since a part was finished
    while todo := sorted(set(range(count)) - set(folder.finished())):
        jobs = (
            joblib.delayed(make_part)(images, images_of(number), folder.part_path(number), settings)
            for number in todo
        )
        try:
            with closing(_run(jobs, min(workers or default_workers(), len(todo)))) as made:
                for finished, _ in enumerate(made, count - len(todo) + 1):
                    deaths = 0
                    if progress is not None:
                        progress(min(len(paths), finished * PART_IMAGES), len(paths))
        except BrokenProcessPool as error:
            deaths += 1
            if deaths == MOST_DEATHS:
                raise UserError(
                    f"a worker died {deaths} times before a part was finished, the last time at one of the "
                    f"images after {images_of(todo[0])[0]!r}; if memory is short, use fewer --workers. "
                    f"What is finished is kept in {folder.path}: the same command goes on"
                ) from error


def _run(jobs: Iterable[Any], processes: int) -> Generator[Any, None, None]:
    """Run jobs in worker processes, or here if one is enough."""
    if processes == 1:
        yield from joblib.Parallel(n_jobs=1, return_as="generator")(jobs)
        return
    with local_workers():
        yield from run_in_workers(jobs, workers=processes)


def make_part(images: OriginalImages, paths: Sequence[str], out: Path, settings: PackSettings) -> None:
    """Encode some images and write them as a pack of their own."""
    cv2.setNumThreads(1)
    rows: list[PackRow] = []
    unreadable: dict[str, str] = {}
    for path in paths:
        try:
            rows.append(pack_row(images, path, settings))
        except ImageError as error:
            unreadable[path] = error.reason
    pieces = (np.frombuffer(row.data, np.uint8) for row in rows)
    write_pack(out, columns_of(rows), pieces, {"unreadable": unreadable})


def pack_row(images: OriginalImages, path: str, settings: PackSettings) -> PackRow:
    """Read, decode (which finds damaged files), and encode one image as the settings ask.

    Raises:
        ImageError: if it cannot be read or decoded.
        UserError: if the images have gone away since they were listed.
    """
    data = images.read_bytes(path)
    header = read_header(data, path)
    if header.foreign:
        _check_bands(data, path, header, settings)
        return PackRow(encode_path(path), header.size, data)
    image = decode_image(data, path, header=header)
    size = (image.shape[0], image.shape[1])
    if settings.short_side is not None and min(size) > settings.short_side:
        data = _encode(_shrink(image, settings.short_side), settings.quality)
    return PackRow(encode_path(path), size, data)


def _check_bands(data: bytes, path: str, header: Header, settings: PackSettings) -> None:
    """Refuse what is no photograph, unless it is a whole TIFF that is kept as it is.

    Raises:
        ImageError: says what is in the way.
    """
    if header.kind != "TIFF":
        raise ImageError(path, header.foreign)
    if settings.short_side is not None and min(header.size) > settings.short_side:
        raise ImageError(path, "no photograph, so it cannot be stored smaller; leave --short-side out")
    try:
        read_bands(data, 3 * MAX_PIXELS)
    except TiffError as error:
        raise ImageError(path, str(error)) from error


def _shrink(image: NDArray[np.uint8], short_side: int) -> NDArray[np.uint8]:
    """Area-average to a short side in pixels."""
    ratio = short_side / min(image.shape[:2])
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """RGB to JPEG."""
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return bytes(encoded.tobytes())


def _join(folder: BuildFolder, target: Path, plan: dict[str, Any]) -> PackSummary:
    """Join all parts into the final file."""
    parts = [ImagePack(folder.part_path(number)) for number in folder.finished()]
    unreadable = {path: why for part in parts for path, why in part.description["unreadable"].items()}
    kept = [part for part in parts if len(part)]
    if not kept:
        raise UserError(
            f"none of the images in {plan['image_root']} can be decoded; the first: {_first(unreadable)}"
        )
    columns: dict[str, Any] = {
        name: np.concatenate([part.column(name) for part in kept]) for name in ("path", "image_size", "crc32")
    }
    lengths = np.concatenate([np.diff(part.column("offset")) for part in kept])
    columns["offset"] = np.concatenate([[0], np.cumsum(lengths)])
    write_pack(target, columns, _blobs(kept), {**plan, "unreadable": unreadable})
    return PackSummary(len(columns["path"]), target.stat().st_size, unreadable)


def _blobs(parts: Sequence[ImagePack]) -> Iterator[NDArray[np.uint8]]:
    """The bytes of the parts, one part at a time."""
    for part in parts:
        yield part.column("blob")


def _first(unreadable: dict[str, str]) -> str:
    path, reason = next(iter(unreadable.items()))
    return f"{path}: {reason}"

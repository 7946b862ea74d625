"""Scoring a mask file against true masks."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...common.config import build
from ...common.errors import UserError
from ...common.iou import iou
from ...common.types import Mask, Pixels
from ...data.images import open_originals
from ...data.images.decode import read_image
from ...data.images.folder import find_images
from ...data.images.store import read_pixels
from ...data.masks.reader import MaskReader
from ..building.plan import as_json
from ..exchange.tree import aspect_differs, binary, resize_mask
from ..recipes import MaskRecipe, recorded_reader
from .measures import adaptive_f_beta, f_beta_curve, mean_absolute_error, s_measure

if TYPE_CHECKING:  # it compiles kernels, which scores of masks do without
    from ..pipeline import Foreground

_LOOKED_AT = 65_536  # pixels of a truth, evenly spread, in which colours are counted
_MOST_COLOURS = 256


@dataclass(frozen=True)
class Scores:
    """Scores per image and over all.

    Attributes:
        images: path -> measure -> value; higher is better but for `mae`.
        mean: measure -> mean over images; `max_f_beta` is the largest value of the mean curve over
            thresholds, as benchmarks report it, not the mean of each image's largest.
        without_mask: images with a truth but no mask; they count with an empty mask.
        without_truth: rows of the mask file that no truth belongs to; they do not count.
    """

    images: dict[str, dict[str, float]]
    mean: dict[str, float]
    without_mask: list[str]
    without_truth: int


def score_masks(
    masks: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    *,
    saliency: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    network: str | os.PathLike[str] | None = None,
) -> Scores:
    """Score a mask file against a folder of true masks, at the truths' own size.

    `iou` is that of the stored mask. The other measures take a map: a folder of grey maps if `saliency` is
    given, the saliency computed again from the images if `images` is given, else the mask itself as a map of
    0 and 1 (then all thresholds agree).

    Args:
        masks: the mask file.
        truth: folder of truth images (foreground above half of the largest value), matched by path without
            suffix, or where that finds nothing by stem.
        saliency: folder of grey saliency maps, matched likewise.
        images: the image folder.
        network: with `images`, the network that took part in refined masks; their file has its digest only.

    Raises:
        UserError: if no truth matches, or two images share a stem that a truth is matched by.
    """
    reader = MaskReader(masks)
    pairs = match_stems(reader.paths, truth)
    if not pairs:
        raise UserError(
            f"none of the {len(reader)} images in {reader.path} has a truth in {truth}; names must match"
        )
    source = _map_source(reader, pairs, saliency, images, network)
    reasons = reader.reasons()
    scores, curves = {}, []
    for path, file in pairs.items():
        pixels = read_image(file)
        if is_photograph(pixels):
            raise UserError(f"{file} is a photograph, no mask; give --truth the folder of true masks")
        true = binary(pixels[:, :, 0])
        if path not in reasons and aspect_differs(true.shape, reader.image_size(path)):
            raise UserError(
                f"{file} is {true.shape}, but {path} is {reader.image_size(path)}; give its own truth"
            )
        mask = np.zeros(true.shape, bool) if path in reasons else resize_mask(reader[path], _size(true))
        saliency_map = mask if source is None or path in reasons else _fit(source(path), true)
        curve = f_beta_curve(saliency_map, true)
        curves.append(curve)
        scores[path] = {
            "iou": iou(mask, true),
            "max_f_beta": float(curve.max()),
            "adaptive_f_beta": adaptive_f_beta(saliency_map, true),
            "mae": mean_absolute_error(saliency_map, true),
            "s_measure": s_measure(saliency_map, true),
        }
    mean = {
        name: float(np.mean([each[name] for each in scores.values()])) for name in next(iter(scores.values()))
    }
    mean["max_f_beta"] = float(np.mean(curves, axis=0).max())
    without_mask = [path for path in pairs if path in reasons]
    return Scores(scores, mean, without_mask, len(reader) - len(pairs))


def is_photograph(pixels: Pixels) -> bool:
    """Whether an image has the many colours, or the many middle greys, that no mask has.

    Soft edges, JPEG's noise, a few levels and palettes of labels are all found in masks.

    Args:
        pixels: (H, W, 3) uint8.
    """
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / _LOOKED_AT) ** 0.5))
    seen = pixels[::step, ::step].reshape(-1, 3).astype(np.int32)
    colours = np.unique(seen @ np.array([1 << 16, 1 << 8, 1])).size
    grey = seen.mean(axis=1)
    middle = np.mean((grey > 0.2 * 255) & (grey < 0.8 * 255))
    return bool(colours > _MOST_COLOURS or (colours > _MOST_COLOURS / 4 and middle > 0.3))


def match_stems(paths: Any, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Find each path's file in a folder: by path without suffix, else by stem.

    Returns:
        path -> file, for the paths that have one.

    Raises:
        UserError: if a stem is needed to match but two paths, or two files, share it.
    """
    root = Path(folder)
    by_path: dict[str, Path] = {}
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for name in find_images(root):
        by_path[str(PurePosixPath(name).with_suffix(""))] = root / name
        by_stem[PurePosixPath(name).stem].append(root / name)
    found, users = {}, {}
    for path in paths:
        whole, stem = str(PurePosixPath(path).with_suffix("")), PurePosixPath(path).stem
        if whole in by_path:
            found[path] = by_path[whole]
        elif stem in by_stem:
            if len(by_stem[stem]) > 1 or stem in users:
                raise UserError(
                    f"{path}: several images or files are called {stem}; mirror the image folders in {root}"
                )
            users[stem] = path
            found[path] = by_stem[stem][0]
    return found


def _map_source(
    reader: MaskReader,
    pairs: dict[str, Path],
    saliency: str | os.PathLike[str] | None,
    images: str | os.PathLike[str] | None,
    network: str | os.PathLike[str] | None,
) -> Callable[[str], NDArray[np.float32]] | None:
    """Where saliency maps come from: a folder, the images, or nowhere."""
    if saliency is not None:
        files = match_stems(pairs, saliency)
        missing = next((path for path in pairs if path not in files), None)
        if missing is not None:
            raise UserError(f"{missing} has no saliency map in {saliency}")
        return lambda path: (read_image(files[path])[:, :, 0] / 255).astype(np.float32)
    if images is not None:
        originals, find = open_originals(images), _recorded_method(reader, network)
        work_size = int(reader.recipe["work_size"])
        bands = recorded_reader(reader.recipe)
        return lambda path: find(read_pixels(originals, path, reduce_to=work_size, reader=bands)).saliency
    return None


def _recorded_method(
    reader: MaskReader, network: str | os.PathLike[str] | None
) -> Callable[[Pixels], Foreground]:
    """Return what made a file's masks, of an image.

    Raises:
        UserError: if this version cannot do it, or needs the network of a refined file.
    """
    recipe = recorded_recipe(reader)
    if not recipe.learned:
        from ..pipeline import segment  # here, for it compiles kernels

        return lambda image: segment(image, recipe)
    if network is None:
        raise UserError(
            f"{reader.path} holds refined masks; add --network FILE, which `masks refine` wrote beside them, "
            "or give saliency maps with --saliency"
        )
    from ..refinement.prediction import NetworkRows, open_network  # here, for it needs torch

    file = open_network(Path(network))
    if file.digest != reader.recipe.get("network"):
        raise UserError(f"{reader.path} was not made with {network}; give the network beside it")
    return NetworkRows(file).find


def recorded_recipe(reader: MaskReader) -> MaskRecipe:
    """Return the recipe a mask file was made by.

    Raises:
        UserError: if this version has none with these parameters.
    """
    parameters = {key: value for key, value in reader.recipe.items() if key not in ("network", "trained")}
    with suppress(UserError):
        recipe = build(MaskRecipe, parameters)
        if as_json(recipe.as_dict()) == parameters:  # everything is told
            return recipe
    raise UserError(
        f"{reader.path} was made by {reader.recipe.get('name')!r} with parameters that this version does not "
        "have; give saliency maps with --saliency, or build the masks again"
    )


def _fit(saliency: NDArray[np.float32], truth: Mask) -> NDArray[np.float32]:
    """A map at the truth's size, in [0, 1]."""
    resized = cv2.resize(saliency, (truth.shape[1], truth.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.clip(resized, 0, 1).astype(np.float32)


def _size(truth: Mask) -> tuple[int, int]:
    return truth.shape[0], truth.shape[1]

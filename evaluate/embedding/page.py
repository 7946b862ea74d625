"""The page of `hapicl embed --show`: nearest neighbours and near-duplicates, as pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.page import Block, Folded, Note, Picture, Pictures, Section, Table, page
from ...common.randomness import counter_generator
from ...common.terminal.printable import printable
from ...common.types import Pixels
from ...data.images.inputs import Inputs, inputs_of
from ...data.images.store import ImageStore
from ...models.preprocess import as_rgb
from .crops import read_crop
from .files import FeatureFile
from .neighbours import Duplicates, near_duplicates, nearest

QUERIES = 12  # images whose neighbours are shown, drawn by a fixed seed
SHOWN_PAIRS, LISTED_PAIRS, LISTED_UNREADABLE = 24, 500, 500
THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Shown:
    """A page, the list of duplicates as CSV, and a sentence on them for the screen."""

    html: str
    duplicates: str
    summary: str


def show_neighbours(
    features: FeatureFile,
    store: ImageStore,
    *,
    k: int,
    threshold: float,
    advance: Callable[[int], None] = lambda done: None,
) -> Shown:
    """Make the page.

    Args:
        features: vectors, (N, D).
        store: the images they are of.
        k: neighbours of each image that is shown.
        threshold: cosine above which two images are listed as near-duplicates.
        advance: called with the images that have been compared with all others.

    Raises:
        ImageError: for an image that could be read when the features were made and cannot now.
    """
    # Parquet's text holds no names that are not UTF-8, so they are looked up by what stands there for them
    known = {printable(path): path for path in store.paths()}
    features = replace(features, paths=[known.get(path, path) for path in features.paths])
    inputs = inputs_of(features.about["inputs"])
    vectors = torch.from_numpy(features.values)
    found = near_duplicates(vectors, threshold, advance=advance)
    summary = f"{found.count:,} pairs of {len(features.paths):,} images have a cosine above {threshold}"
    sections = [
        Section("Nearest neighbours", _neighbours(features, store, k, inputs)),
        Section("Near-duplicates", _duplicates(features.paths, store, found, summary, inputs)),
        *_unreadable(features.about["unreadable"]),
        Section("How it was made", [Table((), _facts(features))]),
    ]
    title = f"Neighbours in {Path(features.about['images']).name}"
    lead = f"{len(features.paths):,} images, compared by the cosine of their vectors."
    return Shown(page(title, sections, lead=lead), _as_csv(features.paths, found), summary)


def _neighbours(features: FeatureFile, store: ImageStore, k: int, inputs: Inputs) -> list[Block]:
    """Some images, each with those that are nearest to it."""
    count = len(features.paths)
    if count < 2:
        return ["There is one image only."]
    order = counter_generator(0, 0, 0, 0, "neighbours").permutation(count)[:QUERIES]
    queries = sorted(int(row) for row in order)
    cosines, rows = nearest(torch.from_numpy(features.values), queries, k)
    blocks: list[Block] = [
        f"{len(queries)} images drawn at random, each followed by its nearest; below each its cosine."
    ]
    for query, values, near in zip(queries, cosines.tolist(), rows.tolist(), strict=True):
        pictures = [_thumbnail(store, features.paths[query], "this one", inputs)]
        pictures += [
            _thumbnail(store, features.paths[row], f"{value:.3f}", inputs)
            for value, row in zip(values, near, strict=True)
        ]
        blocks += [features.paths[query], Pictures(pictures, minimum=96)]
    return blocks


def _duplicates(
    paths: Sequence[str], store: ImageStore, found: Duplicates, summary: str, inputs: Inputs
) -> list[Block]:
    """The most alike pairs as pictures, more as a table."""
    blocks: list[Block] = [
        f"{summary}. What a cosine means depends on the backbone: look at the pictures, and choose another "
        "threshold with --duplicates."
    ]
    if found.count > len(paths):
        blocks.append(Note("That is more than one for each image: the threshold is low for this backbone."))
    cards = [
        Picture(
            _pair(store, paths[first], paths[second], inputs),
            f"{value:.4f}: {paths[first]} | {paths[second]}",
            lossy=True,
        )
        for first, second, value in found.pairs[:SHOWN_PAIRS]
    ]
    if cards:
        blocks.append(Pictures(cards, minimum=240, cards=True))
        listed = [
            (f"{value:.4f}", paths[first], paths[second])
            for first, second, value in found.pairs[:LISTED_PAIRS]
        ]
        table = Table(("cosine", "image", "image"), listed, numeric=(0,))
        blocks.append(Folded(f"The {len(listed):,} most alike as a list", [table]))
    return blocks


def _unreadable(reasons: dict[str, str]) -> list[Section]:
    """Images that have no features, with the reason."""
    if not reasons:
        return []
    rows = list(reasons.items())[:LISTED_UNREADABLE]
    told = f"Images that could not be read and have no features: {len(reasons):,}."
    return [Section("Unreadable images", [told, Table(("image", "reason"), rows)])]


def _facts(features: FeatureFile) -> list[tuple[str, Any]]:
    """Rows on the weights and the input."""
    about = features.about
    weights = about["weights"]
    return [
        ("weights", f"{weights['spec']} (SHA-256 {weights['sha256'][:16]})"),
        ("network", f"{weights['arch']}, stem {weights['stem']}"),
        ("method", weights["method"] or "not recorded"),
        ("vector", f"{about['gives']}, {about['shape'][0]} numbers"),
        ("input", f"short side {about['resize']}, centre crop of {about['image_size']} pixels"),
        ("made with", f"hapicl {about['versions']['hapicl']}, torch {about['versions']['torch']}"),
    ]


def _thumbnail(store: ImageStore, path: str, caption: str, inputs: Inputs) -> Picture:
    """A small picture of an image's centre."""
    return Picture(_pixels(store, path, inputs), caption, alt=f"{caption}: {path}", lossy=True)


def _pair(store: ImageStore, first: str, second: str, inputs: Inputs) -> Pixels:
    """Two images side by side: (S, 2 S, 3) uint8."""
    return np.concatenate([_pixels(store, path, inputs) for path in (first, second)], axis=1)


def _pixels(store: ImageStore, path: str, inputs: Inputs) -> Pixels:
    """An image's centre as it can be looked at: (S, S, 3) uint8."""
    crop = read_crop(store, path, THUMBNAIL, inputs)
    return np.ascontiguousarray(as_rgb(crop.permute(1, 2, 0).numpy()))


def _as_csv(paths: Sequence[str], found: Duplicates) -> str:
    """Every pair that was kept, a line each."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["cosine", "first", "second"])
    writer.writerows((f"{value:.6f}", paths[first], paths[second]) for first, second, value in found.pairs)
    return stream.getvalue()

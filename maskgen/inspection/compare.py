"""Two mask files of the same images side by side, for a user without a truth: what changed, where most."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.errors import UserError
from ...common.page import Pictures, Section, Table, encode_image, page
from ...common.types import Pixels
from ...data.images.store import OriginalImages
from ...data.masks.reader import MaskReader
from .gallery import (
    CARD_SIDE,
    TILE_SIDE,
    agreement,
    contact_sheet,
    mask_cards,
    masked_rows,
    overlay,
    shown_image,
    shown_images,
    tile,
)

LARGEST_CHANGES = 12
_OTHER_MASK = 0.5  # an agreement below is counted as another mask
_CAPTION = "Each card: the image, the first file's mask, the second file's."


@dataclass(frozen=True)
class Comparison:
    """Two mask files over the images that both have a mask of.

    Attributes:
        images: how many those are.
        only_first, only_second: images that only one has a mask of.
        coverage: mean foreground share in the first and in the second.
        agreement: mean IoU of the two masks of an image.
        unchanged: images whose masks are the same to the pixel.
        other: images whose masks agree by less than .5.
        largest: the images that changed most, with their agreement, the most changed first.
    """

    images: int
    only_first: int
    only_second: int
    coverage: tuple[float, float]
    agreement: float
    unchanged: int
    other: int
    largest: list[tuple[str, float]]

    def rows(self) -> list[tuple[str, str]]:
        """Names and texts for a table."""
        return [
            ("images in both", str(self.images)),
            ("only in the first / the second", f"{self.only_first} / {self.only_second}"),
            ("mean coverage", f"{self.coverage[0]:.3f} -> {self.coverage[1]:.3f}"),
            ("mean agreement (IoU)", f"{self.agreement:.3f}"),
            ("unchanged", str(self.unchanged)),
            (f"agreement under {_OTHER_MASK}", str(self.other)),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        return vars(self)


def compare_masks(first: MaskReader, second: MaskReader) -> Comparison:
    """Compare two files image by image; a mask of another size is brought to the first one's.

    Raises:
        UserError: if no image has a mask in both.
    """
    paths = {
        reader.path: [reader.paths[int(row)] for row in masked_rows(reader)] for reader in (first, second)
    }
    own, others = paths[first.path], set(paths[second.path])
    common = [path for path in own if path in others]
    if not common:
        raise UserError(
            f"{first.path} and {second.path} have no image in common; give two mask files of one image folder"
        )
    agreements = []
    for path in common:
        agreements.append(agreement(first[path], second[path]))
    values = np.array(agreements)
    order = np.argsort(values, kind="stable")[:LARGEST_CHANGES]
    coverage = [float(np.mean([reader.coverage(path) for path in common])) for reader in (first, second)]
    return Comparison(
        images=len(common),
        only_first=len(own) - len(common),
        only_second=len(others) - len(common),
        coverage=(coverage[0], coverage[1]),
        agreement=float(values.mean()),
        unchanged=int((values == 1).sum()),
        other=int((values < _OTHER_MASK).sum()),
        largest=[(common[int(row)], float(values[row])) for row in order],
    )


def show_comparison(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    paths: Sequence[str] = (),
) -> Comparison:
    """Write the images that changed most under both masks, as a picture or as a page with the figures.

    Args:
        first, second: mask files of one image folder.
        out: a name that ends in .png or .html.
        images: the image folder, if it is not where the first file says.
        paths: images to show instead of those that changed most.

    Raises:
        UserError: if the files have nothing in common, an image cannot be read, or `out` not be written.
    """
    refuse_unwritable(out)
    readers = MaskReader(first), MaskReader(second)
    found = compare_masks(*readers)
    originals = shown_images(readers[0], images)
    shown = list(paths) or [path for path, _ in found.largest]
    if Path(out).suffix == ".png":
        picture = encode_image(contact_sheet([_tile(readers, originals, path) for path in shown]))
        with atomic_write(out) as part:
            part.write_bytes(picture)
        return found
    heading = "Chosen images" if paths else "Largest changes"
    names = [("first", readers[0].path), ("second", readers[1].path)]
    cards = mask_cards(readers, originals, shown)
    sections = [
        Section("Both files", [Table((), [*names, *found.rows()])]),
        Section(heading, [_CAPTION, Pictures(cards, minimum=2 * CARD_SIDE, cards=True)]),
    ]
    with atomic_write(out) as part:
        lead = f"Two sets of foreground masks of {originals.location}."
        part.write_text(page("Masks compared", sections, lead=lead), encoding="utf-8")
    return found


def _tile(readers: tuple[MaskReader, MaskReader], originals: OriginalImages, path: str) -> Pixels:
    """An image beside itself under both masks."""
    image = shown_image(readers[0], originals, path, TILE_SIDE)
    masks = [reader[path] for reader in readers]
    agreed = agreement(masks[0], masks[1])
    shares = " -> ".join(f"{reader.coverage(path):.0%}" for reader in readers)
    label = f"{agreed:.2f}  {shares}  {Path(path).name}"
    return tile([image, *(overlay(image, mask) for mask in masks)], label, TILE_SIDE)

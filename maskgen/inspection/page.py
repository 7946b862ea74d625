"""The page of a mask file: what it holds, how it was made, and pictures to judge it by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.page import Block, Picture, Section, Table, figure_picture, page
from ...data.masks.reader import MaskReader
from .gallery import contact_sheet, extreme_paths, mask_tiles, masked_rows, random_paths
from .info import describe_file

_FAILURES_SHOWN = 50


def gallery_page(
    masks: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    sample: int = 24,
    paths: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Write a self-contained HTML page about a mask file; arguments as for `gallery.gallery_png`.

    Raises:
        UserError: if an image to show cannot be read, or `out` not be written.
    """
    refuse_unwritable(out)
    reader = MaskReader(masks)
    root = Path(reader.image_root if images is None else images)
    few = max(1, sample // 2)
    choices = [
        ("Chosen rows" if paths else "Random sample", list(paths) or random_paths(reader, sample, seed)),
        ("Lowest confidence", extreme_paths(reader, "confidence", few)),
        ("Smallest coverage", extreme_paths(reader, "coverage", few)),
        ("Largest coverage", extreme_paths(reader, "coverage", few, largest=True)),
    ]
    sections = [Section("The file", [Table((), describe_file(reader)), *_histograms(reader)])]
    for heading, chosen in choices:
        if chosen:
            tiles = mask_tiles(reader, root, chosen)
            caption = "image, and its mask: foreground share, confidence (c), name"
            sections.append(
                Section(heading, [Picture(contact_sheet(tiles), caption, alt=heading, lossy=True)])
            )
    sections.append(Section("Images without a mask", _failures(reader)))
    text = page(f"Masks: {Path(reader.path).name}", sections, lead=f"Foreground masks of {root}.")
    with atomic_write(out) as part:
        part.write_text(text, encoding="utf-8")


def _histograms(reader: MaskReader) -> list[Block]:
    """Histograms of coverage and confidence over all masks."""
    rows = masked_rows(reader)
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("coverage", "confidence"), strict=True):
        values = np.asarray(reader.column(name)[rows], np.float64)
        axes.hist(values[~np.isnan(values)], bins=40, range=(0, 1), color="#c2410c")
        axes.set_xlabel("foreground share of the image" if name == "coverage" else "confidence of the mask")
        axes.set_ylabel("images")
    return [figure_picture(figure, "all masks", alt="histograms of coverage and confidence")]


def _failures(reader: MaskReader) -> list[Block]:
    """The reasons, counted by the first rows."""
    reasons = reader.reasons()
    if not reasons:
        return ["None: every image has a mask."]
    shown = list(reasons.items())[:_FAILURES_SHOWN]
    more = len(reasons) - len(shown)
    blocks: list[Block] = [Table(("image", "reason"), shown)]
    return [*blocks, f"and {more} more"] if more else blocks

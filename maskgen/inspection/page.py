"""The page of a mask file: what it holds, how it was made, and pictures to judge it by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.chart import figure_chart
from ...common.page import Block, Folded, Pictures, Section, Table, page
from ...data.masks.reader import MaskReader
from .gallery import CARD_SIDE, extreme_paths, mask_cards, masked_rows, random_paths, shown_images
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
    originals = shown_images(reader, images)
    few = max(1, sample // 2)
    choices = [
        ("Chosen rows" if paths else "Random sample", list(paths) or random_paths(reader, sample, seed)),
        ("Lowest confidence", extreme_paths(reader, "confidence", few)),
        ("Smallest coverage", extreme_paths(reader, "coverage", few)),
        ("Largest coverage", extreme_paths(reader, "coverage", few, largest=True)),
    ]
    sections = [Section("The file", [*_facts(reader), *_histograms(reader)])]
    for heading, chosen in choices:
        if chosen:
            cards = mask_cards([reader], originals, chosen)
            sections.append(Section(heading, [Pictures(cards, minimum=CARD_SIDE, cards=True)]))
    sections.append(Section("Images without a mask", _failures(reader)))
    text = page(
        f"Masks: {Path(reader.path).name}", sections, lead=f"Foreground masks of {originals.location}."
    )
    with atomic_write(out) as part:
        part.write_text(text, encoding="utf-8")


def _facts(reader: MaskReader) -> list[Block]:
    """What the file is, the recipe's parameters folded."""
    rows = [row for row in describe_file(reader) if row[0] != "recipe"]
    recipe = [(key, str(value)) for key, value in reader.recipe.items()]
    name = reader.recipe.get("name", "of another program")
    return [Table((), rows), Folded(f"Recipe: {name}", [Table((), recipe)])]


def _histograms(reader: MaskReader) -> list[Block]:
    """Histograms of coverage and confidence over all masks."""
    rows = masked_rows(reader)
    charts = []
    for name, what in (
        ("coverage", "foreground share of the image"),
        ("confidence", "confidence of the mask"),
    ):
        figure = Figure(figsize=(4, 2.6), layout="constrained")
        axes = figure.subplots()
        values = np.asarray(reader.column(name)[rows], np.float64)
        axes.hist(values[~np.isnan(values)], bins=40, range=(0, 1), color="C1")
        axes.set_xlabel(what)
        axes.set_ylabel("images")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        charts.append(figure_chart(figure, alt=f"histogram over all masks: {what}"))
    return [Pictures(charts, minimum=300)]


def _failures(reader: MaskReader) -> list[Block]:
    """The reasons, counted by the first rows."""
    reasons = reader.reasons()
    if not reasons:
        return ["None: every image has a mask."]
    shown = list(reasons.items())[:_FAILURES_SHOWN]
    more = len(reasons) - len(shown)
    blocks: list[Block] = [Table(("image", "reason"), shown)]
    return [*blocks, f"and {more} more"] if more else blocks

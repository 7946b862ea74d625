"""`hapicl demo`: both stages, one after the other, on the demo's own image folder; each part is timed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..common.atomic_files import atomic_write
from ..common.errors import UserError
from ..common.locks import LOCK
from ..common.terminal.printable import console as plain_console
from .folder import Folder, build_folder

MARKER = "demo.json"  # a folder that holds it is the demo's own, and is made anew
MADE = ("images", "truth", "masks.h5", "masks.h5.parts", "gallery.png", "run", "report.html")
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much the demo makes."""

    per_class: int  # collages of each of nine classes
    steps: int  # optimiser steps
    batch_size: int
    image_size: int  # side of the views, pixels


FULL = Size(per_class=40, steps=40, batch_size=32, image_size=128)
SMALL = Size(per_class=8, steps=10, batch_size=16, image_size=64)
# the recipe is made for long runs: a short one needs a faster slow copy, a higher rate and no warm-up
RECIPE = "hapicl_m_small"
WEIGHTS = "run/backbone.safetensors"
OVERRIDES = (
    "config.momentum=0.9",
    "optimizer.base_lr=0.24",
    "schedule.warmup_epochs=0",
    "log_every=1",
)


@dataclass
class Timeline:
    """What was made and how long each part took."""

    console: Console
    parts: list[tuple[str, str, float]] = field(default_factory=list)  # name, what it made, seconds

    @contextmanager
    def part(self, name: str) -> Iterator[list[str]]:
        """Time a part; it appends to the list it is given what it made."""
        self.console.rule(name, align="left")
        start = time.monotonic()
        made: list[str] = []
        yield made
        seconds = time.monotonic() - start
        self.parts.append((name, "; ".join(made), seconds))
        self.console.print(f"{'; '.join(made)} ({seconds:.1f} s)", soft_wrap=True)

    def table(self) -> Table:
        """Give what was made and the seconds, for the terminal."""
        table = Table("part", "made")
        table.add_column("seconds", justify="right")
        for name, made, seconds in self.parts:
            table.add_row(name, made, f"{seconds:.1f}")
        table.add_section()
        table.add_row("all", "", f"{sum(seconds for *_, seconds in self.parts):.1f}")
        return table


def run_demo(out: str | Path, *, small: bool = False, console: Console | None = None) -> Path:
    """Make the image folder, find and score masks, pretrain briefly, and write the report.

    A folder that an earlier demo made is emptied of what that demo made, and made anew.

    Args:
        out: folder for everything.
        small: fewer collages, smaller views, fewer steps.
        console: where progress is printed.

    Returns:
        The report.

    Raises:
        UserError: for a folder that holds something else, or cannot be written.
    """
    from .report import DemoResult, write_report
    from .stages import find_masks, mean_iou, pretrain_briefly, save_gallery, score

    size = SMALL if small else FULL
    timeline = Timeline(console or plain_console())
    folder = Path(out).resolve()
    masks, report = folder / "masks.h5", folder / "report.html"
    prepare(folder, small=small)
    with timeline.part("image folder") as made:
        pictures = build_folder(folder, per_class=size.per_class, seed=SEED)
        made.append(_describe(pictures))
    with timeline.part("masks, found without the truth") as made:
        count, nbytes = find_masks(pictures, masks, timeline.console)
        made.append(f"masks.h5: {count} masks, {nbytes / 1000:.0f} kB")
    with timeline.part("score against the truth") as made:
        scores = score(pictures, masks)
        photographs, collages = (
            mean_iou(scores, names) for names in (pictures.photographs, pictures.collages)
        )
        made.append(f"mean IoU {photographs:.2f} on photographs, {collages:.2f} on collages")
    with timeline.part("gallery") as made:
        drawn = save_gallery(pictures, masks, folder / "gallery.png", scores)
        made.append("gallery.png")
    with timeline.part("short pretraining") as made:
        options = {"masks": str(masks), "out": str(folder / "run"), "steps": size.steps}
        sizes = {"batch_size": size.batch_size, "image_size": size.image_size}
        run = pretrain_briefly(options | sizes, RECIPE, OVERRIDES)
        made.append(f"run/: {len(run.metrics)} steps of {size.batch_size} images, ends in {WEIGHTS}")
    start = time.monotonic()
    write_report(report, DemoResult(pictures, scores, drawn, run, timeline.parts))
    timeline.parts.append(("report", report.name, time.monotonic() - start))
    timeline.console.print(timeline.table())
    timeline.console.print(f"Look at {report}", soft_wrap=True)
    return report


def prepare(folder: Path, *, small: bool) -> None:
    """Make the output folder, or empty one that an earlier demo made; nothing else is ever deleted.

    Raises:
        UserError: if the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    if folder.is_dir():
        if any(path.name != LOCK for path in folder.iterdir()) and not (folder / MARKER).is_file():
            raise UserError(f"{folder} is not empty and was not made by `hapicl demo`; choose another --out")
        for name in MADE:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    with atomic_write(folder / MARKER) as part:
        part.write_text(json.dumps({"made by": "hapicl demo", "small": small}) + "\n", encoding="utf-8")


def _describe(pictures: Folder) -> str:
    """Say how many pictures of what there are."""
    return (
        f"{len(pictures.photographs)} photographs and {len(pictures.collages)} collages "
        f"in {len(pictures.labels)} classes, with true masks"
    )

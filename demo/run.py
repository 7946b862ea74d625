"""`hapicl demo`: both stages, one after the other, on the demo's own image folder; each part is timed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..common.atomic_files import atomic_write
from ..common.errors import UserError
from ..common.locks import LOCK
from ..common.system.processor import computes_bf16
from ..common.terminal.printable import console as plain_console
from .folder import Folder, build_folder

if TYPE_CHECKING:  # what they import takes seconds
    from ..maskgen.inspection.score import Scores
    from .learning import Learning
    from .stages import Drawn, Run

MARKER = "demo.json"  # a folder that holds it is the demo's own, and is made anew
MADE = ("images", "truth", "unseen", "masks.h5", "masks.h5.parts", "gallery.png", "run", "report.html")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much the demo makes."""

    per_class: int  # collages of each of nine classes
    unseen: int  # more of them that nothing is trained on
    steps: int  # optimiser steps
    batch_size: int
    image_size: int  # side of the views, pixels
    probe_steps: int  # of the classifier on the map, when it is measured what was learnt


FULL = Size(per_class=60, unseen=30, steps=120, batch_size=64, image_size=64, probe_steps=150)
SMALL = Size(per_class=8, unseen=4, steps=10, batch_size=16, image_size=64, probe_steps=20)
# SimCLR's form learns from the first step on, without a queue to fill. The recipe is made for long runs on
# many photographs; a short one on a few objects learns more from a higher rate, a lower temperature, crops
# that keep the object, and colours that stay near what they are
RECIPE = "hapicl_s_small"
WEIGHTS = "run/backbone.safetensors"
OVERRIDES = (
    "optimizer.base_lr=0.48",
    "schedule.warmup_epochs=1",
    "config.temperature=0.1",
    "config.crop_scale=[0.4, 1.0]",
    "config.photometric={brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.02, grey: 0, blur: 0}",
    "log_every=5",
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


def run_demo(out: str | Path, *, small: bool = False, seed: int = 0, console: Console | None = None) -> Path:
    """Make the image folder, find and score masks, pretrain briefly, measure, and write the report.

    A folder that an earlier demo made is emptied of what that demo made, and made anew.

    Args:
        out: folder for everything.
        small: fewer collages, fewer steps.
        seed: of the collages and of the training.
        console: where progress is printed.

    Returns:
        The report.

    Raises:
        UserError: for a folder that holds something else, or cannot be written.
    """
    from .report import DemoResult, write_report

    size = SMALL if small else FULL
    timeline = Timeline(console or plain_console())
    folder = Path(out).resolve()
    report = folder / "report.html"
    prepare(folder, small=small)
    with timeline.part("image folder") as made:
        pictures = build_folder(folder, per_class=size.per_class, seed=2 * seed)
        unseen = _unseen(folder / "unseen", size, 2 * seed + 1)
        made.append(_describe(pictures, unseen))
    scores, drawn = _find_masks(folder, pictures, timeline)
    run, learning = _learn(folder, pictures, unseen, size, seed, timeline)
    start = time.monotonic()
    write_report(report, DemoResult(pictures, scores, drawn, run, learning, timeline.parts))
    timeline.parts.append(("report", report.name, time.monotonic() - start))
    timeline.console.print(timeline.table())
    timeline.console.print(learning.in_words(), soft_wrap=True)
    timeline.console.print(f"Look at {report}", soft_wrap=True)
    return report


def _find_masks(folder: Path, pictures: Folder, timeline: Timeline) -> tuple[Scores, Drawn]:
    """Stage one: masks, their score against the truth, the gallery."""
    from .stages import find_masks, mean_iou, save_gallery, score

    masks = folder / "masks.h5"
    with timeline.part("masks, found without the truth") as made:
        count, nbytes = find_masks(pictures, masks)
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
    return scores, drawn


def _learn(
    folder: Path, pictures: Folder, unseen: Folder, size: Size, seed: int, timeline: Timeline
) -> tuple[Run, Learning]:
    """Stage two: a short pretraining, and what it learnt."""
    from .learning import measure_learning
    from .stages import pretrain_briefly

    with timeline.part("short pretraining") as made:
        options = {"masks": str(folder / "masks.h5"), "out": str(folder / "run"), "seed": seed}
        precision = ("precision=bf16",) if computes_bf16() else ()
        sizes = {"steps": size.steps, "batch_size": size.batch_size, "image_size": size.image_size}
        run = pretrain_briefly(options | sizes, RECIPE, OVERRIDES + precision)
        made.append(f"run/: {size.steps} steps of {size.batch_size} images, ends in {WEIGHTS}")
    with timeline.part("before and after, on collages that were not trained on") as made:
        learning = measure_learning(pictures, unseen, folder / WEIGHTS, run.settings, size.probe_steps)
        made.append(learning.in_words())
    return run, learning


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


def _unseen(folder: Path, size: Size, seed: int) -> Folder:
    """Collages of the same objects on other backgrounds, at other places and scales."""
    folder.mkdir()
    return build_folder(folder, per_class=size.unseen, seed=seed, with_photographs=False)


def _describe(pictures: Folder, unseen: Folder) -> str:
    """Say how many pictures of what there are."""
    return (
        f"{len(pictures.photographs)} photographs and {len(pictures.collages)} collages "
        f"in {len(pictures.labels)} classes, with true masks; {len(unseen.collages)} collages to measure on"
    )

"""The cells of a comparison, each a result file under the output folder; what is there is not computed again.

A cell's file is found by the hash of everything that changes its number (weights, protocol, parameters, data,
label subset, seed), so that more seeds, other fractions or another reference go on with what there is, and a
folder may hold the cells of several comparisons.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.terminal.progress import duration
from ..measure import Task, content_of, measure
from ..result import hardware, read_result, write_result
from ..settings import Request, Runtime
from .costs import Pace, PeakMemory
from .design import Cell, cells
from .labels import LabelledSet
from .resampling import PerImage, read_per_image, write_per_image
from .settings import CompareSettings, per_cent
from .verdict import metric_name

CELLS = "cells"  # folder of the cells' files, below the output
DIGITS = 16  # of the content's hash in a file's name


@dataclass(frozen=True)
class Measured:
    """A cell that was measured, and its result file."""

    cell: Cell
    file: Path
    result: dict[str, Any]

    @property
    def value(self) -> float:
        """The headline, in [0, 1]."""
        return float(self.result["mean"][self.result["headline"]])

    @property
    def seconds(self) -> float:
        """Wall time of the cell."""
        return float(self.result["runs"][0]["seconds"])

    @property
    def peak_gib(self) -> float:
        """Peak memory, GiB."""
        return float(self.result["comparison"]["peak_memory_gib"])

    @property
    def resumed(self) -> bool:
        """Whether an earlier call had begun the cell, whose time is not in `seconds`."""
        return bool(self.result["comparison"]["resumed"])

    def per_image(self) -> PerImage:
        """What each test image adds to the headline; empty where that is not kept."""
        return read_per_image(self.file.with_suffix(".npz"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison before it runs."""

    settings: CompareSettings
    labelled: LabelledSet
    runtime: Runtime
    folder: Path
    say: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    _said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Refuse fractions that are the same images."""
        counts: dict[int, float] = {}
        for fraction in self.settings.fractions:
            images = self.labelled.images(fraction)
            if images in counts:
                raise UserError(
                    f"{per_cent(counts[images])} and {per_cent(fraction)} of {len(self.labelled.train)} "
                    f"labelled images are both {images}; leave one of them out of --fractions"
                )
            counts[images] = fraction

    @property
    def cells(self) -> int:
        """How many cells the design has."""
        settings = self.settings
        return len(settings.initialisations) * len(settings.fractions) * settings.seeds

    def request(self, cell: Cell, runs_folder: Path | None = None) -> Request:
        """The evaluation of a cell."""
        request = self.settings.request(cell.initialisation, cell.seed)
        return request.replace(runtime=self.runtime.replace(folder=runs_folder), say=self.say_once)

    def say_once(self, text: str) -> None:
        """Say what a cell has to say, unless another has said it."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)


@dataclass(frozen=True)
class Prepared:
    """A cell to run: its task, and the hash of what changes its number."""

    cell: Cell
    task: Task
    content: str


def run_cells(plan: Plan, measured: dict[Cell, Measured]) -> None:
    """Measure the cells that are missing, in their order, until they or the budget end.

    Args:
        plan: what is compared; its budget counts from this call.
        measured: filled with the cells that were there, all at once, and then with each new one, so that a
            signal loses none of them.

    Raises:
        UserError: for weights, data or parameters that an evaluation refuses.
        RunStopped: after a signal during a training.
    """
    budget = plan.settings.budget_hours
    end = None if budget is None else plan.clock() + 3600 * budget
    there, todo = prepare(plan)
    measured.update(there)
    pace = _pace_of(plan, measured)
    plan.say(f"{plan.cells} cells: {len(there)} measured before, {len(todo)} to go")
    for place, prepared in enumerate(todo):
        rest = [(each.cell.initialisation, plan.labelled.images(each.cell.fraction)) for each in todo[place:]]
        if end is not None and not _fits(pace, rest[0], end - plan.clock()):
            return
        found = _measure(plan, prepared)
        measured[prepared.cell] = found
        if not found.resumed:
            pace.add(*rest[0], found.seconds)
        plan.say(_line(plan, found, len(measured), plan.cells))
        if len(rest) > 1 and _worth_telling(todo, place):
            left = None if end is None else end - plan.clock()
            plan.say(_outlook(plan, pace, rest[1:], left, done=len(measured)))


def prepare(plan: Plan) -> tuple[dict[Cell, Measured], list[Prepared]]:
    """Give the cells that are there, and the others in their order.

    Every initialisation is loaded for it, so that weights that cannot be measured are told before hours of
    work.
    """
    there, todo = {}, []
    for cell in cells(plan.settings):
        request = plan.request(cell)
        task = plan.labelled.part(request, cell.fraction)
        content = content_of(request, task)
        found = _find(plan, cell, content)
        if found is None:
            todo.append(Prepared(cell, task, content))
        else:
            there[cell] = found
    return there, todo


def _find(plan: Plan, cell: Cell, content: str) -> Measured | None:
    """The result of this content, under whatever name the initialisation had."""
    for file in sorted((plan.folder / CELLS).glob(f"*-{content[:DIGITS]}.json")):
        result = read_result(file)
        if result.get("content") != content:
            continue
        if not {"peak_memory_gib", "resumed"} <= set(result.get("comparison") or {}):
            raise UserError(f"{file} is no cell of a comparison; move it away, or choose another --out")
        return Measured(cell, file, result)
    return None


def _measure(plan: Plan, prepared: Prepared) -> Measured:
    """Run a cell and write its files; its checkpoint goes once they are there."""
    cell = prepared.cell
    readable = re.sub(r"[^\w.-]", "_", cell.initialisation)
    name = f"{readable}-{per_cent(cell.fraction).replace(' %', 'pct')}-seed{cell.seed}"
    file = plan.folder / CELLS / f"{name}-{prepared.content[:DIGITS]}.json"
    runs_folder = file.with_suffix(".runs")
    resumed = runs_folder.exists()
    with PeakMemory(plan.runtime.device) as peak:
        result, runs = measure(plan.request(cell, runs_folder), prepared.task)
    result["comparison"] = {
        "initialisation": cell.initialisation,
        "fraction": cell.fraction,
        "peak_memory_gib": round(peak.gib, 3),
        "resumed": resumed,
    }
    write_per_image(runs[0].outcome.per_image, file.with_suffix(".npz"))
    write_result(result, file)
    shutil.rmtree(runs_folder, ignore_errors=True)
    return Measured(cell, file, result)


def _pace_of(plan: Plan, measured: dict[Cell, Measured]) -> Pace:
    """What the cells of earlier calls took on this machine."""
    pace, machine = Pace(), hardware()
    for cell, found in measured.items():
        if found.result["hardware"] == machine and not found.resumed:
            pace.add(cell.initialisation, plan.labelled.images(cell.fraction), found.seconds)
    return pace


def _fits(pace: Pace, cell: tuple[str, int], left: float) -> bool:
    """Whether a cell ends in time, as far as can be told."""
    return left > 0 and (pace.seconds(*cell) or 0.0) <= left


def _worth_telling(todo: list[Prepared], place: int) -> bool:
    """Whether a cell tells more of what is to come: the first one, or the last of a fraction and seed."""
    here, after = todo[place].cell, todo[place + 1].cell
    return place == 0 or (here.seed, here.fraction) != (after.seed, after.fraction)


def _line(plan: Plan, found: Measured, done: int, total: int) -> str:
    """One measured cell."""
    cell, metric = found.cell, metric_name(found.result["headline"])
    return (
        f"[{done}/{total}] {cell.initialisation}, {per_cent(cell.fraction)} of the labels "
        f"({plan.labelled.images(cell.fraction)} images), seed {cell.seed}: "
        f"{metric} {100 * found.value:.2f} % in {duration(found.seconds)}"
    )


def _outlook(plan: Plan, pace: Pace, rest: list[tuple[str, int]], left: float | None, *, done: int) -> str:
    """What is still to be done, and how much of it the budget holds."""
    total = pace.total(rest) or 0.0
    text = f"{len(rest)} cells left, about {duration(total)}"
    if left is None:
        return text
    fitting = pace.fitting(rest, left)
    if fitting == len(rest):
        return f"{text}; all fit into the budget"
    spent = 3600 * (plan.settings.budget_hours or 0.0) - left
    needed = (spent + total) / 3600
    seeds = (done + fitting) * plan.settings.seeds // plan.cells
    return (
        f"{text}; {fitting} of them fit into the budget, so that {seeds} of {plan.settings.seeds} seeds are "
        f"whole (all would need --budget {needed:.2g})"
    )

"""The page of a comparison: words first, then curves, numbers, costs, how it was done, the command."""

from __future__ import annotations

import datetime
import statistics
from pathlib import Path
from typing import Any

from ....common.page import Block, Code, Folded, Note, Pictures, Section, Table, page
from ....common.terminal.progress import duration
from ...report.page import data_table, flat_rows
from ...result import code_version
from ..outcome import Comparison, pretraining_hours
from ..settings import per_cent
from ..statistics import SEEDS_NEEDED
from ..verdict import metric_name
from .figures import differences, learning_curves
from .table import number_header, number_rows, seed_rows, verdict_rows

FROZEN = (
    "The backbone stays frozen in seg-probe: it measures what the features hold. A network that is "
    "fine-tuned as a whole can make up for a poor start, so a difference may be smaller there (--protocol "
    "seg-moco-fcn16)."
)


def comparison_page(comparison: Comparison) -> str:
    """The report, to be written as UTF-8."""
    sections = [
        _verdict(comparison),
        Section("Curves", [Pictures([learning_curves(comparison), differences(comparison)], minimum=360)]),
        _numbers(comparison),
        _costs(comparison),
        _design(comparison),
        Section(
            "Command", ["It makes this page, and goes on where cells are missing:", Code(comparison.command)]
        ),
    ]
    title = f"Did pretraining help on {_data_name(comparison)}?"
    return page(title, sections, lead=_lead(comparison), footer=_footer(comparison))


def _data_name(comparison: Comparison) -> str:
    """The labelled set's name."""
    record = comparison.example["data"]["unlabelled"]
    return str(record.get("name") or Path(str(record["root"])).name)


def _lead(comparison: Comparison) -> str:
    """What was compared, in a sentence."""
    settings = comparison.settings
    fractions = ", ".join(per_cent(fraction) for fraction in settings.fractions)
    return (
        f"{', '.join(settings.initialisations)}, measured by {settings.protocol} with {fractions} of "
        f"{comparison.available} labelled images and {settings.seeds} seed(s): "
        f"{metric_name(comparison.headline)} on {comparison.example['data']['test']['images']} test images."
    )


def _verdict(comparison: Comparison) -> Section:
    """The sentences, and what must be read with them."""
    settings, metric = comparison.settings, metric_name(comparison.headline)
    glance = Table(
        ["initialisation", *(f"{per_cent(fraction)} of the labels" for fraction in settings.fractions)],
        _unbroken(verdict_rows(comparison)),
        caption=f"Points of {metric} against {settings.reference}, with the 95 % interval over seeds",
    )
    blocks: list[Block] = [*comparison.verdicts(), glance]
    blocks += [Note(f"{text[0].upper()}{text[1:]}.") for text in comparison.warnings()]
    blocks += comparison.remarks()
    if settings.protocol == "seg-probe":
        blocks.append(FROZEN)
    return Section("Verdict", blocks)


def _unbroken(rows: list[list[str]]) -> list[list[str]]:
    """Rows whose cells a browser does not break."""
    return [[text.replace(" ", "\N{NO-BREAK SPACE}") for text in row] for row in rows]


def _numbers(comparison: Comparison) -> Section:
    """Means and differences, and each seed's behind a click."""
    table = Table(
        number_header(comparison),
        _unbroken(number_rows(comparison)),
        caption="Mean ± standard deviation over seeds (number of seeds); every number is the last step's.",
        numeric=(2, 3, 4, 5, 7),
    )
    seeds = Table(
        ["labels", "initialisation", "seed", "difference, points", "95 % over the test images"],
        _unbroken(seed_rows(comparison)),
        caption=(
            "Inside a seed the interval is a bootstrap over the test images: how much hangs on which images "
            "were tested. It says nothing of another seed and decides nothing."
        ),
        numeric=(2, 3, 4),
    )
    return Section("Numbers", [table, Folded("Each seed by itself", [seeds])])


def _costs(comparison: Comparison) -> Section:
    """Hours and memory by initialisation."""
    rows = []
    for name in comparison.settings.initialisations:
        cells = comparison.of(name)
        if cells:
            hours = sum(each.seconds for each in cells) / 3600
            least = "at least " if any(each.resumed for each in cells) else ""
            each = duration(statistics.fmean(found.seconds for found in cells))
            peak = max(found.peak_gib for found in cells)
            before = pretraining_hours(comparison.settings, name)
            told = "-" if before is None else f"{before:.2f}"
            rows.append([name, str(len(cells)), f"{least}{hours:.2f}", each, f"{peak:.2f}", told])
    header = ["initialisation", "cells", "hours", "a cell", "peak memory, GiB", "pretraining, hours"]
    text = (
        "Of this comparison; pretraining as the run's log tells it, where the weights lie in a run folder. "
        "Memory is of the GPU, or without one of the whole process."
    )
    return Section("Costs", [text, Table(header, rows, numeric=(1, 2, 3, 4, 5))])


def _design(comparison: Comparison) -> Section:
    """How it was done."""
    result = comparison.example
    steps, batch = (result["parameters"].get(name) for name in ("steps", "batch_size"))
    texts = [
        f"Every cell has the same budget, {steps} steps of {batch} images, whatever the fraction. A seed "
        "draws the label subset, the order, the augmentation, the new layers and random weights, alike for "
        "all initialisations, so that they are compared seed by seed. Subsets are drawn image by image and "
        "nested: the images of a fraction are among those of the next. An image that brings a class not "
        "drawn before gets its labels first, so that small fractions miss as few classes as they can.",
        "A verdict needs a 95 % interval of the mean difference (Student's t over the seeds) that leaves out "
        f"zero, and at least {SEEDS_NEEDED} seeds. Seeds to decide: as many as would be needed if mean and "
        "deviation of the differences stayed as they are; it is an estimate, and poor with few seeds.",
        "Random weights have their BatchNorm statistics from all training images, which needs no labels.",
    ]
    weights = [(name, text) for name, text in comparison.settings.initialisations.items()]
    about = Table(["initialisation", "weights"], weights)
    details = Table([], flat_rows({"protocol": result["protocol"], **result["parameters"]}))
    data = data_table({"train": result["data"]["unlabelled"], "test": result["data"]["test"]})
    folded = [Folded("Parameters", [details]), Folded("Data", [data])]
    return Section("How it was measured", [*texts, about, *folded])


def _footer(comparison: Comparison) -> str:
    """When, by which code and on what."""
    machines = sorted({_machine(each.result["hardware"]) for each in comparison.measured.values()})
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"{today}, code {code_version()}; measured on {'; '.join(machines)}"


def _machine(hardware: dict[str, Any]) -> str:
    """A machine in words."""
    return f"{hardware['gpu'] or 'no GPU'}, {hardware['cores']} cores, {hardware['processor']}"

"""HTML reports: one evaluation with its curves, classes and pictures; or a table with bars."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ...common.chart import figure_chart
from ...common.page import Note, Picture, Pictures, Section, Table, page
from ...common.terminal.progress import duration
from ..pictures import palette
from ..result import Run
from .table import ResultTable

VECTOR_NAMES = {"mean": "mean over the cells of the last map", "class": "class token"}
# what JSON calls a part of the data, for people
DATA_NAMES = {"root": "folder", "labels_root": "labels", "files": "digest of the names", "void": "void label"}
MOST_CLASSES = 60  # above that a confusion matrix is no longer readable
MOST_NUMBERED = 20  # above that its numbers are not


def result_page(result: dict[str, Any], runs: list[Run]) -> str:
    """Report of one result file.

    Args:
        result: as written to JSON.
        runs: the same runs, with their pictures.
    """
    sections = [_numbers(result), Section("Data and machine", [data_table(result["data"]), _machine(result)])]
    if any(run.outcome.curves.get("loss") for run in runs):
        sections.append(Section("Training", [figure_chart(_curves(runs), "Loss by step, one line per run")]))
    if result["runs"][0]["per_class"]:
        sections.append(_classes(result))
    confusion = runs[0].outcome.confusion
    names = list(runs[0].outcome.per_class)
    if confusion is not None and len(confusion) <= MOST_CLASSES:
        caption = "Fraction of each true class (row) predicted as each class (column), first run"
        if len(confusion) <= MOST_NUMBERED:
            caption += "; the numbers are per cent of the row"
        sections.append(Section("Confusion", [figure_chart(_confusion(confusion, names), caption)]))
    pictures = [Picture(pixels, caption, lossy=True) for caption, pixels in runs[0].outcome.pictures]
    if pictures and result["task"] == "segment":
        legend = figure_chart(_legend(names), "Colours of the classes; void is white in the truth")
        sections.append(
            Section("Pictures (input, truth, prediction)", [legend, Pictures(pictures, minimum=420)])
        )
    elif pictures:
        sections.append(Section("Pictures (truth, detections above .3)", [Pictures(pictures, minimum=420)]))
    sections.append(Section("Parameters", [Table([], flat_rows(result["parameters"]))]))
    title = f"{result['protocol']}: {result['weights']['spec']}"
    return page(title, sections, footer=f"{result['created']}, code {result['code_version']}")


def data_table(data: dict[str, Any]) -> Table:
    """Where the data of a result lies and how much it is, a column for each part of it."""
    parts = {name: values for name, values in data.items() if isinstance(values, dict)}
    rest = {name: value for name, value in data.items() if name not in parts}
    if rest:
        parts["both"] = rest
    keys = dict.fromkeys(key for values in parts.values() for key in values)
    rows = [
        [
            DATA_NAMES.get(key, key.replace("_", " ")),
            *(_in_words(values.get(key)) for values in parts.values()),
        ]
        for key in keys
    ]
    return Table(["", *parts], rows)


def _in_words(value: Any) -> str:
    """A value of JSON for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)
    return "-" if value is None else str(value)


def _machine(result: dict[str, Any]) -> Table:
    """How long it took, on what machine."""
    seconds = sum(run["seconds"] for run in result["runs"])
    runs, machine = len(result["runs"]), result["hardware"]
    processes = machine.get("processes", 1)
    shared = f", {processes} processes" if processes > 1 else ""
    return Table(
        [],
        [
            ("duration", f"{duration(seconds)} for {runs} run{'s' if runs > 1 else ''}"),
            (
                "machine",
                f"{machine['gpu'] or 'no GPU'}, {machine['cores']} cores, {machine['processor']}{shared}",
            ),
        ],
    )


def _numbers(result: dict[str, Any]) -> Section:
    """Mean and deviation of every metric, where they come from."""
    weights = result["weights"]
    rows = []
    for name, mean in result["mean"].items():
        deviation = result["std"][name]
        each = ", ".join(f"{100 * run['metrics'][name]:.2f}" for run in result["runs"])
        spread = "one run" if deviation is None else f"{100 * deviation:.2f}"
        rows.append((name, f"{100 * mean:.2f}", spread, each))
    vectors = result["runs"][0].get("vectors") or ()  # results of before 1.0 do not say
    measured = f" Measured on the {VECTOR_NAMES[vectors[0]]}." if vectors else ""
    origin = (
        f"Weights: {weights['spec']}, {weights['arch']} (stem {weights['stem']}), "
        f"{weights['matched']} of {weights['total']} keys matched, SHA-256 {weights['sha256'][:16]}. "
        f"Numbers are those of the last step.{measured}"
    )
    table = Table(["metric", "mean, %", "standard deviation", "runs, %"], rows, numeric=(1, 2, 3))
    return Section("Result", [table, origin])


def _classes(result: dict[str, Any]) -> Section:
    """The headline by class, mean over runs."""
    names = list(result["runs"][0]["per_class"])
    rows = []
    for name in names:
        values = [run["per_class"][name] for run in result["runs"]]
        known = [value for value in values if value is not None]
        rows.append((name, f"{100 * float(np.mean(known)):.1f}" if known else "not in the test set"))
    return Section("Classes", [Table(["class", "mean over runs, %"], rows, numeric=(1,))])


def _curves(runs: list[Run]) -> Figure:
    """Loss against step."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        points = run.outcome.curves.get("loss", [])
        axes.plot([step for step, _ in points], [value for _, value in points], label=f"seed {run.seed}")
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("training loss")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def _confusion(confusion: list[list[int]], names: list[str]) -> Figure:
    """Row-normalised confusion matrix, with numbers where they can be read."""
    counts = np.asarray(confusion, float)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.0, min(12.0, 0.45 * len(names) + 2))
    figure = Figure(figsize=(side, 0.85 * side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(fractions, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(fractions):
            colour = "#010101" if value > 0.6 else "white"  # on viridis' bright end, on its dark end
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(shown, shrink=0.7)
    return figure


def _legend(names: list[str]) -> Figure:
    """A patch of each class's colour with its name."""
    colours = palette(len(names)) / 255
    across = min(6, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(1.4 * across, 0.3 * down + 0.1))
    figure.legend(
        handles=[
            Patch(facecolor=colours[number], edgecolor="0.5", label=name) for number, name in enumerate(names)
        ],
        loc="center",
        ncols=across,
        frameon=False,
        fontsize=8,
    )
    return figure


def flat_rows(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested parameters as rows."""
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += flat_rows(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def table_page(table: ResultTable, *, title: str = "Results", lead: str = "") -> str:
    """The table, and a bar chart of each column."""
    header, *rows = table.lines()
    numeric = tuple(range(1, len(header)))
    warnings = [Note(warning) for warning in table.warnings]
    sections = [Section("Table", [Table(header, rows, numeric=numeric), *warnings])]
    charts = [figure_chart(bars(table, [name]), alt=f"{name}: a bar for each row") for name in table.columns]
    sections.append(
        Section("Bars", ["Mean and deviation over runs, per cent.", Pictures(charts, minimum=360)])
    )
    return page(
        title, sections, lead=lead or "Per cent, mean ± standard deviation over runs (number of runs)."
    )


def bars(table: ResultTable, columns: Sequence[str] | None = None) -> Figure:
    """One panel for each of some columns (None: all), one bar per row, deviations as whiskers."""
    columns = table.columns if columns is None else columns
    count = len(columns)
    across = min(3, count)
    down = -(-count // across)
    height = 1.0 + 0.28 * len(table.rows)
    figure = Figure(figsize=(4.2 * across, height * down), layout="constrained")
    panels = np.atleast_1d(figure.subplots(down, across, sharey=True)).ravel()
    for panel in panels[count:]:
        panel.set_visible(False)
    for panel, column in zip(panels, columns, strict=False):
        for position, row in enumerate(table.rows):
            cell = table.cells.get((row, column))
            if cell is None:
                continue
            colour = "0.6" if row.startswith("random") else "tab:blue"
            error = None if cell.std is None else 100 * cell.std
            panel.barh(position, 100 * cell.mean, xerr=error, color=colour, height=0.7, ecolor="0.2")
        if count > 1:
            panel.set_title(column, fontsize=8)
        panel.set_yticks(range(len(table.rows)), table.rows, fontsize=8)
        panel.grid(axis="x", alpha=0.3)
    if count == 1:  # over labels and panel together, where a long name finds room
        figure.suptitle(textwrap.fill(columns[0], 64), fontsize=8)
    panels[0].set_ylim(len(table.rows) - 0.5, -0.5)
    return figure

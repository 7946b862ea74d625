"""The claims table: methods by protocols over seeds, and in words what it shows and what it does not.

A row is a method, its values are over seeds of pretraining and evaluation together. A difference counts as
shown only where it exceeds twice its standard error and there are at least three seeds; everything else is
said to be open. This file only computes and writes; `benchmarks/claims.py` runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hapicl.evaluate.report.table import Cell, ResultTable

SEEDS_NEEDED = 3


@dataclass(frozen=True)
class Claim:
    """A statement of a paper as comparisons: (row, row it is said to beat), on dense columns or on all."""

    text: str
    pairs: tuple[tuple[str, str], ...]


CLAIMS = (
    Claim(
        "HAPiCL: dense transfer beats instance-level learning; it lifts SimCLR and MoCo",
        (
            ("hapicl_s", "simclr"),
            ("hapicl_m", "moco_v2"),
            ("hapicl_m", "hapicl_m_redraws_only"),
            ("hapicl_m", "byol"),
            ("harl", "byol"),
        ),
    ),
    Claim("DenseCL: dense transfer above MoCo v2", (("densecl", "moco_v2"),)),
    Claim(
        "PIRL: an invariant pretext beats a covariant one",
        (("pirl", "jigsaw"), ("pirl", "rotation"), ("pirl", "npid")),
    ),
    Claim(
        "SiameseIM: linear near MoCo v3 and above MAE, dense at MAE's level or above",
        (("siameseim", "mae"), ("siameseim", "moco_v3")),
    ),
)


@dataclass(frozen=True, kw_only=True)
class ClaimsTable:
    """Everything the page shows.

    `values[(row, column)]` are shares in [0, 1], one per seed; `starts[row]` is the row of the random start
    that a trained row's backbone had; `costs[row]` maps a cost with its unit to a text; `missing` says in
    words what was not run.
    """

    scale: str
    smoke: bool
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[tuple[str, str], Sequence[float]]
    starts: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def cell(self, row: str, column: str) -> Cell | None:
        """Mean and deviation over seeds, None where nothing was run."""
        values = self.values.get((row, column))
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Cell(statistics.fmean(values), deviation, len(values))

    def results(self) -> ResultTable:
        """The numbers as a result table, for its charts."""
        cells = {(row, column): self.cell(row, column) for row in self.rows for column in self.columns}
        known = {key: cell for key, cell in cells.items() if cell is not None}
        rows = tuple(row for row in self.rows if any((row, column) in known for column in self.columns))
        return ResultTable(rows, self.columns, known)


def compare(first: Sequence[float], second: Sequence[float]) -> tuple[float, float | None, str]:
    """Compare two rows' values of one column.

    Returns:
        The difference of the means, its standard error (Welch; None with a single seed), and a verdict:
        `higher`, `lower`, or `open`.
    """
    difference = statistics.fmean(first) - statistics.fmean(second)
    if min(len(first), len(second)) < 2:
        return difference, None, "open"
    error = math.sqrt(statistics.variance(first) / len(first) + statistics.variance(second) / len(second))
    if min(len(first), len(second)) < SEEDS_NEEDED or abs(difference) <= 2 * error:
        return difference, error, "open"
    return difference, error, "higher" if difference > 0 else "lower"


def claim_lines(table: ClaimsTable, claim: Claim) -> list[str]:
    """One line per comparison and column, in per cent points."""
    lines = []
    for row, rival in claim.pairs:
        for column in table.columns:
            first, second = table.values.get((row, column)), table.values.get((rival, column))
            if not first or not second:
                continue
            difference, error, verdict = compare(first, second)
            spread = "one seed" if error is None else f"± {100 * error:.1f}, {len(first)} seeds"
            word = {"higher": "shown", "lower": "contradicted", "open": "open"}[verdict]
            lines.append(f"{row} against {rival}, {column}: {100 * difference:+.1f} ({spread}): {word}")
    return lines


SMOKE_WARNING = (
    "This is the smoke scale: a few steps on a CPU, to show that every row and column runs. It does not say "
    "which method is better, whatever the digits look like: at this length the methods have hardly left "
    "their random start."
)
SMALL_WARNING = (
    "The images, the length and the backbones are small. Nothing here reproduces or refutes a number of a "
    "paper; only rows of this table may be compared with each other, and only within a column. The rows of "
    "ViT methods have another backbone than the others."
)


COST_NOTE = (
    "Wall time, whatever else the machine was doing; the masks' is that of the whole command, its start "
    "included, divided by the images."
)


def statement(table: ClaimsTable) -> list[str]:
    """What the table shows and what it does not, in plain sentences."""
    verdicts = [
        compare(table.values[(row, column)], table.values[(rival, column)])[2]
        for claim in CLAIMS
        for row, rival in claim.pairs
        for column in table.columns
        if (row, column) in table.values and (rival, column) in table.values
    ]
    counted = {word: verdicts.count(word) for word in ("higher", "lower", "open")}
    decided = (
        f"Of {len(verdicts)} comparisons that the papers' claims ask for, {counted['higher']} come out as "
        f"claimed, {counted['lower']} against it and {counted['open']} stay open. A comparison is decided "
        f"only where the difference exceeds twice its standard error over at least {SEEDS_NEEDED} seeds; "
        "many are made, and at that bar several of every hundred would be decided by chance alone."
    )
    said = [SMOKE_WARNING] if table.smoke else []
    return [line for line in (*said, decided, _against_random(table), SMALL_WARNING) if line]


def _against_random(table: ClaimsTable) -> str:
    """How many trained rows are above their backbone's random start, column by column."""
    parts = []
    for column in table.columns:
        pairs = [
            (table.values[(row, column)], table.values[(start, column)])
            for row, start in table.starts.items()
            if (row, column) in table.values and (start, column) in table.values
        ]
        if pairs:
            above = sum(statistics.fmean(trained) > statistics.fmean(start) for trained, start in pairs)
            parts.append(f"{column} {above} of {len(pairs)}")
    if not parts:
        return ""
    counts = "; ".join(parts)
    return (
        "Rows whose mean is above random weights of the same backbone (BatchNorm statistics re-estimated on "
        f"the training images), by column: {counts}."
    )


def render(table: ClaimsTable, *, figure: str, command: str, date: str) -> str:
    """The page docs/claims.md.

    Args:
        table: the numbers.
        figure: file name of the chart beside the page.
        command: what makes and continues it.
        date: of the newest number.
    """
    mark = " (smoke scale)" if table.smoke else ""
    parts = [f"# The claims table{mark}", *statement(table), f"![Means and deviations over seeds]({figure})"]
    parts += [f"## Numbers{mark}", _number_note(), _numbers(table)]
    if table.costs:
        parts += ["## Costs", COST_NOTE, _costs(table)]
    parts.append("## Claims")
    for claim in CLAIMS:
        lines = claim_lines(table, claim)
        body = "\n".join(f"- {line}" for line in lines) if lines else "Not run."
        parts.append(f"**{claim.text}.**\n\n{body}")
    if table.missing:
        parts += ["## Not run", "\n".join(f"- {line}" for line in table.missing)]
    settings = "\n".join(f"- {name}: {value}" for name, value in table.settings.items())
    parts += ["## Settings", settings, f"```\n{command}\n```", f"Newest number: {date}."]
    return "\n\n".join(parts) + "\n"


def _number_note() -> str:
    """How to read a number."""
    return (
        "Per cent, mean ± sample standard deviation over seeds (number of seeds); a seed covers pretraining "
        "and evaluation. Each number is the last step's, never the best."
    )


def _numbers(table: ClaimsTable) -> str:
    """The main table."""
    lines = ["| row | " + " | ".join(table.columns) + " |", "|---|" + "---:|" * len(table.columns)]
    for row in table.rows:
        cells = (table.cell(row, column) for column in table.columns)
        lines.append(f"| {row} | " + " | ".join("not run" if c is None else c.text() for c in cells) + " |")
    return "\n".join(lines)


def _costs(table: ClaimsTable) -> str:
    """The cost of each row."""
    names = list(dict.fromkeys(name for costs in table.costs.values() for name in costs))
    lines = ["| row | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for row, costs in table.costs.items():
        lines.append(f"| {row} | " + " | ".join(costs.get(name, "not measured") for name in names) + " |")
    return "\n".join(lines)

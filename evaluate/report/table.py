"""Tables of result files: one row per weights, one column per protocol and data set.

Numbers are in per cent, mean ± sample standard deviation over runs; one run has no deviation. Protocols never
share a column, because their numbers are not comparable.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ..result import read_result


@dataclass(frozen=True)
class Cell:
    """One number: mean and deviation as shares, runs."""

    mean: float
    std: float | None
    runs: int

    def text(self) -> str:
        """Per cent, such as `41.2 ± 0.6 (3)`; the number of runs in brackets."""
        if self.std is None:
            return f"{100 * self.mean:.1f} (1)"
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f} ({self.runs})"


@dataclass(frozen=True)
class ResultTable:
    """Rows and columns in the order in which they came; cells by (row, column)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]

    def lines(self) -> list[list[str]]:
        """Header and rows as text; `-` where there is no result."""
        lines = [["weights", *self.columns]]
        for row in self.rows:
            found = (self.cells.get((row, column)) for column in self.columns)
            lines.append([row, *("-" if cell is None else cell.text() for cell in found)])
        return lines


def row_name(result: dict[str, Any]) -> str:
    """Name weights in a table: random, supervised, or the method or file, with the architecture."""
    weights = result["weights"]
    if "row" in result:
        return str(result["row"])
    kind, arch = weights["kind"], weights["arch"]
    if kind in {"random", "supervised"}:
        return f"{kind} {arch}"
    name = weights.get("method") or Path(weights["spec"]).stem
    return f"{name} {arch} {weights['sha256'][:8]}"


def column_name(result: dict[str, Any]) -> str:
    """Name a column: protocol, data, metric."""
    data = result["data"]
    name = (data.get("test") or {}).get("name") or Path((data.get("test") or {}).get("root", "")).name
    return f"{result['protocol']} {name} {result['headline']}".replace("  ", " ")


def gather(paths: Sequence[Path]) -> ResultTable:
    """Read result files into a table.

    Raises:
        UserError: if a file is no result, or two files claim the same cell.
    """
    rows: dict[str, None] = {}
    columns: dict[str, None] = {}
    cells: dict[tuple[str, str], Cell] = {}
    source: dict[tuple[str, str], Path] = {}
    for path in paths:
        result = read_result(path)
        key = (row_name(result), column_name(result))
        if key in cells:
            raise UserError(
                f"{path} and {source[key]} both give {key[1]!r} of {key[0]!r}; leave one out "
                "(or measure several seeds in one file with --runs)"
            )
        rows[key[0]], columns[key[1]] = None, None
        source[key] = path
        headline = result["headline"]
        cells[key] = Cell(result["mean"][headline], result["std"][headline], len(result["runs"]))
    if not cells:
        raise UserError("give at least one result file of `hapicl evaluate`")
    return ResultTable(_random_first(tuple(rows)), tuple(columns), cells)


def _random_first(rows: tuple[str, ...]) -> tuple[str, ...]:
    """The rows to compare with on top."""
    first = [row for row in rows if row.startswith("random")]
    return (*first, *(row for row in rows if row not in first))


def markdown(table: ResultTable) -> str:
    """A GitHub table."""
    header, *rows = table.lines()
    bars = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, bars, *rows)) + "\n"


def comma_separated(table: ResultTable) -> str:
    """One line per cell: weights, column, mean, std, runs, shares in full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["weights", "protocol", "mean", "std", "runs"])
    for (row, column), cell in table.cells.items():
        writer.writerow([row, column, cell.mean, "" if cell.std is None else cell.std, cell.runs])
    return stream.getvalue()

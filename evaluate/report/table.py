"""Tables of result files: one row per weights, one column per protocol, its parameters and its data set.

Numbers are in per cent, mean ± sample standard deviation over runs; one run has no deviation. What is not
comparable never shares a column: other protocols, parameters (size, neighbours, precision ...) or images.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ..identity import data_identity
from ..result import read_result


@dataclass(frozen=True)
class Cell:
    """One number: mean and deviation as fractions, runs."""

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
    """Rows and columns in the order in which they came; cells by (row, column).

    `inputs` names the sides of the images that a row's numbers come from, pixels; `warnings` say in words
    what a reader should not compare.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    inputs: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[list[str]]:
        """Header and rows as text; `-` where there is no result."""
        lines = [["weights (stem)", "input, px", *self.columns]]
        for row in self.rows:
            found = (self.cells.get((row, column)) for column in self.columns)
            lines.append(
                [row, self.inputs.get(row, "-"), *("-" if cell is None else cell.text() for cell in found)]
            )
        return lines


def row_name(result: dict[str, Any]) -> str:
    """Name weights in a table: random, supervised, or the method or file; architecture and stem."""
    weights = result["weights"]
    if "row" in result:
        return str(result["row"])
    kind, network = weights["kind"], f"{weights['arch']} ({weights.get('stem', 'stem not told')})"
    if kind == "random" and "batchnorm_images" not in weights and "resnet" in weights["arch"]:
        kind = "random-untouched"  # a result from before `random` had its BatchNorm re-estimated
    if kind.startswith("random"):
        return f"{kind} {network}"
    name = "supervised" if kind == "supervised" else weights.get("method") or Path(weights["spec"]).stem
    return f"{name} {network} {weights['sha256'][:8]}"


def input_size(result: dict[str, Any]) -> int | None:
    """Side of the images that the backbone saw, pixels; results of before 1.0 tell it by their parameters."""
    if result.get("image_size"):
        return int(result["image_size"])
    parameters = result.get("parameters") or {}
    for name in ("image_size", "width", "crop"):
        if name in parameters:
            return int(parameters[name])
    sides = (parameters.get("shape") or {}).get("short_sides")
    return int(sides[-1]) if sides else None


def gather(paths: Sequence[Path]) -> ResultTable:
    """Read result files into a table.

    Raises:
        UserError: if a file is no result, or two files claim the same cell.
    """
    results = [(path, read_result(path)) for path in paths]
    if not results:
        raise UserError("give at least one result file of `hapicl evaluate`")
    titles = _column_titles([result for _, result in results])
    cells: dict[tuple[str, str], Cell] = {}
    source: dict[tuple[str, str], Path] = {}
    sizes: dict[str, dict[int, None]] = {}
    stems: dict[str, dict[str, str]] = {}
    for (path, result), column in zip(results, titles, strict=True):
        key = (row_name(result), column)
        if key in cells:
            raise UserError(
                f"{path} and {source[key]} both give {key[1]!r} of {key[0]!r}; leave one out "
                "(or measure several seeds in one file with --runs)"
            )
        source[key] = path
        headline = result["headline"]
        cells[key] = Cell(result["mean"][headline], result["std"][headline], len(result["runs"]))
        if (size := input_size(result)) is not None:
            sizes.setdefault(key[0], {})[size] = None
        stems.setdefault(column, {})[key[0]] = str(result["weights"].get("stem", "stem not told"))
    rows = tuple(dict.fromkeys(row for row, _ in cells))
    return ResultTable(
        _random_first(rows),
        tuple(dict.fromkeys(titles)),
        cells,
        {row: ", ".join(map(str, sorted(found))) for row, found in sizes.items()},
        tuple(_stem_warnings(stems)),
    )


def _column_titles(results: Sequence[dict[str, Any]]) -> list[str]:
    """A title for each result: protocol, data and metric, and whatever else tells two columns apart.

    Results of one column get the title of the first of them, wherever the others' data lay.
    """
    first: dict[str, dict[str, Any]] = {}
    keys = [_column_key(result) for result in results]
    for key, result in zip(keys, results, strict=True):
        first.setdefault(key, result)
    titles = {}
    for key, result in first.items():
        title = _plain_title(result)
        rivals = [other for at, other in first.items() if at != key and _plain_title(other) == title]
        titles[key] = title + _difference(result, rivals)
    return [titles[key] for key in keys]


def _column_key(result: dict[str, Any]) -> str:
    """What results of one column agree in."""
    wanted = (result["protocol"], result["headline"], result.get("parameters"), data_identity(result["data"]))
    return json.dumps([*wanted, input_size(result)], sort_keys=True)


def _plain_title(result: dict[str, Any]) -> str:
    """Protocol, data, metric."""
    test = result["data"].get("test") or {}
    name = test.get("name") or Path(test.get("root", "")).name
    return f"{result['protocol']} {name} {result['headline']}".replace("  ", " ")


def _difference(result: dict[str, Any], rivals: Sequence[dict[str, Any]]) -> str:
    """The parameters and data in which a result differs from others of the same plain title, in brackets."""
    if not rivals:
        return ""
    own = _flat(result.get("parameters") or {})
    others = [_flat(rival.get("parameters") or {}) for rival in rivals]
    words = [
        f"{name} {value}" for name, value in own.items() if any(other.get(name) != value for other in others)
    ]
    identity = data_identity(result["data"])
    if any(data_identity(rival["data"]) != identity for rival in rivals):
        mark = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:6]
        words.append(f"{_place(result, rivals)} #{mark}")
    return f" [{', '.join(words)}]"


def _place(result: dict[str, Any], rivals: Sequence[dict[str, Any]]) -> str:
    """Where the part of the data lies in which a result differs from others: its test set, or another."""
    for part in ("test", *result["data"]):
        own = data_identity(result["data"].get(part))
        if any(data_identity(rival["data"].get(part)) != own for rival in rivals):
            record = result["data"].get(part) or {}
            return f"{part} {record.get('root') or record.get('name') or ''}".rstrip()
    return "data"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _stem_warnings(stems: dict[str, dict[str, str]]) -> list[str]:
    """A sentence for each column in which networks of one kind were measured with different stems."""
    found = []
    for column, by_row in stems.items():
        for kind in ("convolution", "patch"):
            rows: dict[str, list[str]] = {}
            for row, stem in by_row.items():
                if stem.startswith("patch") == (kind == "patch"):
                    rows.setdefault(stem, []).append(row)
            if len(rows) > 1:
                which = "; ".join(f"{stem}: {', '.join(names)}" for stem, names in rows.items())
                found.append(
                    f"{column}: rows of different stems have maps of different size and are not comparable "
                    f"({which}); measure again with --stem"
                )
    return found


def _random_first(rows: tuple[str, ...]) -> tuple[str, ...]:
    """The rows to compare with on top."""
    first = [row for row in rows if row.startswith("random")]
    return (*first, *(row for row in rows if row not in first))


def markdown(table: ResultTable) -> str:
    """A GitHub table."""
    header, *rows = table.lines()
    bars = ["---", *("---:" for _ in header[1:])]
    text = "\n".join("| " + " | ".join(line) + " |" for line in (header, bars, *rows)) + "\n"
    return text + "".join(f"\nWarning: {warning}\n" for warning in table.warnings)


def comma_separated(table: ResultTable) -> str:
    """One line per cell: weights, input, column, mean, std, runs, fractions in full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["weights", "input_px", "protocol", "mean", "std", "runs"])
    for (row, column), cell in table.cells.items():
        writer.writerow(
            [
                row,
                table.inputs.get(row, ""),
                column,
                cell.mean,
                "" if cell.std is None else cell.std,
                cell.runs,
            ]
        )
    return stream.getvalue()

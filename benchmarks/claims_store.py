"""What the claims table has measured: one JSON file in the repository, and the result files of a work folder.

The JSON file (`benchmarks/results/claims_SCALE.json`) holds every cell with its seed, machine and date,
the course of every training run, and what a method's training costs. What a work folder adds is taken
into it, so runs of several machines and sittings come together, and the page is made from the one file.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hapicl.common.atomic_files import atomic_write
from hapicl.common.errors import UserError
from hapicl.evaluate.result import read_result

FORMAT = 2
POINTS = 40  # of a run's curve that are kept
Key = tuple[str, str, int]  # row, column, seed


class ClaimsStore:
    """The measured cells and runs of one scale.

    Args:
        file: the JSON file; made when first saved.
        scale: name of the scale.
        settings: everything that changes a number; a file made by others is refused.

    Raises:
        UserError: if the file is of another scale, of other settings or damaged.
    """

    def __init__(self, file: Path, scale: str, settings: dict[str, str]) -> None:
        """Read what is there."""
        self.file, self.scale, self.settings = file, scale, settings
        self.cells: dict[Key, dict[str, Any]] = {}
        self.runs: dict[tuple[str, int], dict[str, Any]] = {}
        self.masks: dict[str, Any] = {}
        self.costs: dict[str, dict[str, Any]] = {}  # by row
        if file.exists():
            self._read()

    def _read(self) -> None:
        """Read the file."""
        try:
            content = json.loads(self.file.read_text())
            same = content["format"] == FORMAT and content["scale"] == self.scale
            # what the file does not know is of columns that came later, which it has no numbers of
            known = content["settings"]
            differing = [name for name, text in self.settings.items() if known.get(name, text) != text]
            cells, runs, self.masks = content["cells"], content["runs"], content["masks"]
            self.cells = {(cell["row"], cell["column"], cell["seed"]): cell for cell in cells}
            self.runs = {(run["row"], run["seed"]): run for run in runs}
            self.costs = {cost["row"]: cost for cost in content.get("costs", [])}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.file} is no file of claims ({error!r}); choose another --out") from error
        if not same or differing:
            what = ", ".join(differing) or "format or scale"
            raise UserError(
                f"{self.file} was measured with another {what}; move it away or choose another --out"
            )

    def __contains__(self, key: Key) -> bool:
        """Whether a cell is there."""
        return key in self.cells

    def values(self) -> dict[tuple[str, str], dict[int, float]]:
        """Shares in [0, 1] by row and column, each by seed."""
        found: dict[tuple[str, str], dict[int, float]] = {}
        for (row, column, seed), cell in sorted(self.cells.items(), key=lambda item: item[0][2]):
            found.setdefault((row, column), {})[seed] = cell["value"]
        return found

    def add_cell(self, row: str, column: str, seed: int, result: dict[str, Any]) -> None:
        """Take in a result file."""
        self.cells[row, column, seed] = {
            "row": row,
            "column": column,
            "seed": seed,
            "value": result["mean"][result["headline"]],
            "metrics": result["mean"],
            "machine": result["hardware"]["gpu"] or "CPU",
            "seconds": round(sum(run["seconds"] for run in result["runs"]), 1),
            "date": result["created"][:10],
        }

    def add_run(self, row: str, seed: int, course: dict[str, Any]) -> None:
        """Take in the course of a training run."""
        self.runs[row, seed] = {"row": row, "seed": seed, **course}

    def add_cost(self, row: str, cost: dict[str, Any]) -> None:
        """Take in what training a row costs."""
        self.costs[row] = {"row": row, **cost}

    def save(self) -> None:
        """Write the file, whole."""
        content = {
            "format": FORMAT,
            "scale": self.scale,
            "settings": self.settings,
            "masks": self.masks,
            "cells": [self.cells[key] for key in sorted(self.cells)],
            "runs": [self.runs[key] for key in sorted(self.runs)],
            "costs": [self.costs[row] for row in sorted(self.costs)],
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.file) as part:
            part.write_text("".join(_lines(content)))


def _lines(content: dict[str, Any]) -> Iterator[str]:
    """JSON with one cell or run a line, which diffs can show."""
    yield "{\n"
    for at, (name, value) in enumerate(content.items()):
        end = "\n" if at + 1 == len(content) else ",\n"
        if isinstance(value, list):
            rows = ",\n  ".join(json.dumps(each) for each in value)
            yield f" {json.dumps(name)}: [\n  {rows}\n ]{end}"
        else:
            yield f" {json.dumps(name)}: {json.dumps(value)}{end}"
    yield "}\n"


def is_result(path: Path, row: str) -> bool:
    """Whether a result file is there; one of `random` with untouched BatchNorm is not the baseline."""
    if not path.exists():
        return False
    return row != "random" or "batchnorm_images" in read_result(path)["weights"]


def course(folder: Path) -> dict[str, Any]:
    """What a training run's folder tells: where it was trained, its loss by step, its last numbers."""
    lines = _lines_with_loss(folder)
    every = max(1, len(lines) // POINTS)
    kept = [*lines[::every], *([lines[-1]] if (len(lines) - 1) % every else [])]
    return {
        "steps": lines[-1]["step"],
        "device": _device(folder),
        "loss": [[line["step"], round(line["loss"], 4)] for line in kept],
        "last": {name: value for name, value in lines[-1].items() if isinstance(value, int | float)},
    }


def cost(folder: Path) -> dict[str, Any]:
    """What training costs, of the folder of a run that had the machine to itself."""
    lines = _lines_with_loss(folder)
    rates = [line["speed/samples_per_second"] for line in lines[1:]]  # the first line is warm-up
    return {
        "seconds_per_image": 1 / statistics.median(rates),
        "peak_memory_gib": round(max(line["memory/peak_gib"] for line in lines), 3),
        "device": _device(folder),
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines_with_loss(folder: Path) -> list[dict[str, Any]]:
    """A run's logged steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def _device(folder: Path) -> str:
    """What a run was trained on."""
    name = str(json.loads((folder / "config.json").read_text())["environment"]["device"])
    return "CPU" if name == "cpu" else name

"""Make the claims table: pretrain every method on the same images, measure each, render the page.

    python benchmarks/claims.py --data .datasets --images .datasets/imagenet1000 --work runs/claims

Rows are (method, recipe, seed), columns protocols, each cell a result file under WORK/results; what is there
is not run again, and a pretraining cut off by the budget continues from its checkpoint. The first seed goes
over all rows before the second begins, so the table is whole early. Without --masks the masks are built first
and timed. `--render` writes docs/claims.md, docs/claims.png and benchmarks/results/claims_SCALE.json from
what is there. Data sets that are missing under --data leave their column out, which the page says.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from claim_columns import CONTROLS, ORDER, RANDOM_ROWS, SCALES, VIT, Column, Scale, columns
from claims_table import ClaimsTable, render

from hapicl.common.atomic_files import atomic_write
from hapicl.common.errors import UserError
from hapicl.data.images.folder import find_images
from hapicl.engine.stop import EXIT_STOPPED
from hapicl.evaluate.finetune import RunStopped
from hapicl.evaluate.report.page import bars
from hapicl.evaluate.result import read_result, write_result
from hapicl.evaluate.settings import Request, Runtime
from hapicl.pretrain.methods.registry import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]


class BudgetSpent(Exception):
    """The time is up; what is missing waits for the next call."""


@dataclass
class Budget:
    """Minutes left."""

    end: float

    def left(self) -> float:
        """Seconds left; raises when there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise BudgetSpent
        return left


def build_masks(images: Path, work: Path, scale: Scale, recipe: str, budget: Budget) -> Path:
    """Build the mask file once, and note what it cost."""
    masks, note = work / "masks.h5", work / "masks.json"
    if masks.exists() and note.exists():
        return masks
    start = time.perf_counter()
    limit = () if scale.limit is None else ("--limit", str(scale.limit))
    command = ("masks", "build", "--images", str(images), "--out", str(masks), "--recipe", recipe, *limit)
    run_command([*command, "--workers", "1"], work / "masks.log", budget)
    seconds = time.perf_counter() - start
    count = scale.limit or len(find_images(images))
    write_json(note, {"seconds_per_image_one_core": seconds / count, "images": count, "recipe": recipe})
    return masks


def run_command(arguments: list[str], log: Path, budget: Budget) -> None:
    """Run `hapicl ...`; when the budget ends, ask it to stop (it writes a checkpoint)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hapicl", *arguments], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            process.wait(timeout=budget.left())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)
            raise BudgetSpent from None
    if process.returncode == EXIT_STOPPED:
        raise BudgetSpent
    if process.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        raise UserError(f"hapicl {' '.join(arguments[:2])} failed ({process.returncode}): {last}; see {log}")


def pretrain_row(
    method: str, seed: int, scale: Scale, masks: Path, work: Path, budget: Budget, device: str
) -> Path:
    """Pretrain one method with one seed, or go on with it; give the backbone's file."""
    folder = work / "runs" / f"{method}-s{seed}"
    backbone, cost = folder / "backbone.safetensors", work / "costs" / f"{method}-s{seed}.json"
    if backbone.exists() and cost.exists():
        return backbone
    stem = scale.vit_stem if method in VIT else scale.resnet_stem
    name, *changes = CONTROLS.get(method, (method,))
    command = ["pretrain", "--recipe", f"{name}_small", "--masks", str(masks), "--out", str(folder)]
    command += [*scale.pretrain, "--set", f"stem={stem}", "--seed", str(seed), "--device", device]
    if scale.limit is not None:
        command += ["--set", f"limit={scale.limit}"]
    command += [part for change in changes for part in ("--set", change)]
    command += ["--resume", "auto"] if (folder / "last.pt").exists() else []
    run_command(command, work / "logs" / f"{method}-s{seed}.log", budget)
    write_json(cost, measure_cost(folder))
    return backbone


def measure_cost(folder: Path) -> dict[str, float]:
    """Seconds per image and peak memory of a run, from its metrics (the first line is warm-up)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rate = "speed/samples_per_second"
    rates = sorted(line[rate] for line in lines[1:] if rate in line)
    peaks = [line["memory/peak_gib"] for line in lines if "memory/peak_gib" in line]
    return {"seconds_per_image": 1 / rates[len(rates) // 2], "peak_memory_gib": max(peaks)}


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def slug(title: str) -> str:
    """A column's file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def cell_file(work: Path, column: Column, row: str, seed: int) -> Path:
    """Where a cell lies."""
    return work / "results" / slug(column.title) / f"{row}-s{seed}.json"


def is_measured(path: Path, row: str) -> bool:
    """Whether a cell is there; one of `random` from before its BatchNorm was re-estimated does not count."""
    if not path.exists():
        return False
    return row != "random" or "batchnorm_images" in read_result(path)["weights"]


def fill(
    work: Path, row: str, seed: int, weights: str, todo: list[Column], options: argparse.Namespace
) -> None:
    """Measure one row and seed by every column that is missing."""
    scale = SCALES[options.scale]
    vit = row in (*VIT, "random_vit")
    for column in todo:
        out = cell_file(work, column, row, seed)
        if is_measured(out, row) or (vit and not column.for_vit):
            continue
        options.budget.left()
        start = time.perf_counter()
        request = Request(
            weights=weights,
            protocol="",
            arch=RANDOM_ROWS[row][1] if row in RANDOM_ROWS else None,
            stem=scale.vit_stem if vit else scale.resnet_stem,
            seed=seed,
            runtime=Runtime(
                device=torch.device(options.device), workers=options.workers, folder=out.with_suffix(".runs")
            ),
            say=lambda text: None,
        )
        try:
            result, _ = column.run(request)
        except RunStopped:  # a signal: the cell goes on from its checkpoint in the next call
            raise BudgetSpent from None
        write_result({**result, "row": row, "column": column.title}, out)
        for checkpoint in out.with_suffix(".runs").rglob("*.pt"):
            checkpoint.unlink()
        value = result["mean"][result["headline"]]
        print(
            f"{row} seed {seed}: {column.title} {100 * value:.1f} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )


def rows_of(options: argparse.Namespace) -> list[str]:
    """Rows in their order: the random starts, then the asked methods."""
    chosen = options.methods or [*ORDER, *VIT]
    unknown = [name for name in chosen if name not in METHODS and name not in CONTROLS]
    if unknown:
        raise UserError(f"--methods {unknown[0]}: choose of {', '.join([*METHODS, *CONTROLS])}")
    starts = list(RANDOM_ROWS) if any(name in VIT for name in chosen) else ["random", "random-untouched"]
    return [*starts, *(["supervised"] if options.supervised else []), *chosen]


def run_all(options: argparse.Namespace, todo: list[Column]) -> list[str]:
    """Run what is missing; give a line for everything that failed."""
    scale, work, failed = SCALES[options.scale], options.work, []
    masks = options.masks or build_masks(options.images, work, scale, options.mask_recipe, options.budget)
    for seed in range(options.seeds):
        for row in rows_of(options):
            try:
                if row in RANDOM_ROWS:
                    weights = RANDOM_ROWS[row][0]
                elif row == "supervised":
                    weights = f"supervised:{options.supervised}"
                else:
                    weights = str(pretrain_row(row, seed, scale, masks, work, options.budget, options.device))
                fill(work, row, seed, weights, todo, options)
            except UserError as error:  # one row's mistake must not cost the others their turn
                print(f"{row} seed {seed}: {error}", file=sys.stderr, flush=True)
                failed.append(f"{row}, seed {seed}: {error}")
    return failed


def gather(options: argparse.Namespace, every: list[Column], failed: list[str]) -> tuple[ClaimsTable, str]:
    """Everything that lies in the work folder as a table, and the newest date."""
    rows = rows_of(options)
    values: dict[tuple[str, str], list[float]] = {}
    newest = ""
    for row, column, result in results(options, rows, every):
        values.setdefault((row, column.title), []).append(result["mean"][result["headline"]])
        newest = max(newest, result["created"][:10])
    shown = tuple(column.title for column in every if any((row, column.title) in values for row in rows))
    missing = [
        f"{column.title}: no data set {' or '.join(column.needs)}"
        for column in every
        if lacking(options, column)
    ]
    missing += [*failed, "instance mask AP: no data set with instance masks at hand"]
    missing += ["detectors and fine-tuned FCNs on the ViT rows: both need a ResNet"]
    if SCALES[options.scale].fcn is None:
        missing += ["fine-tuned FCN mIoU and linear probe: columns of the small scale"]
    missing += [] if options.supervised else ["a supervised row: no weight file given (--supervised FILE)"]
    missing += [
        f"{row}: no result yet" for row in rows if not any((row, column) in values for column in shown)
    ]
    table = ClaimsTable(
        scale=options.scale,
        smoke=options.scale == "smoke",
        rows=tuple(rows),
        columns=shown,
        values=values,
        starts={
            row: "random_vit" if row in VIT else "random"
            for row in rows
            if row not in RANDOM_ROWS and row != "supervised"
        },
        costs=costs(options.work, rows),
        settings=describe(options),
        missing=tuple(missing),
    )
    return table, newest


def results(
    options: argparse.Namespace, rows: list[str], every: list[Column]
) -> Iterator[tuple[str, Column, dict[str, Any]]]:
    """Every cell that is there."""
    for row in rows:
        for column in every:
            for seed in range(options.seeds):
                path = cell_file(options.work, column, row, seed)
                if is_measured(path, row):
                    yield row, column, read_result(path)


def lacking(options: argparse.Namespace, column: Column) -> bool:
    """Whether a column's data is not there."""
    return not all((options.data / name).is_dir() for name in column.needs)


def costs(work: Path, rows: list[str]) -> dict[str, dict[str, str]]:
    """Cost of pretraining by row, and of the masks."""
    table: dict[str, dict[str, str]] = {}
    note = work / "masks.json"
    masks = json.loads(note.read_text())["seconds_per_image_one_core"] if note.exists() else None
    for row in rows:
        found = [json.loads(path.read_text()) for path in sorted((work / "costs").glob(f"{row}-s*.json"))]
        if found:
            seconds = sorted(each["seconds_per_image"] for each in found)[len(found) // 2]
            table[row] = {
                "ms per image, training": f"{1000 * seconds:.1f}",
                "peak memory, GiB": f"{max(each['peak_memory_gib'] for each in found):.2f}",
            }
            if row.startswith("ha") and masks is not None:
                table[row]["ms per image, masks (once, one core)"] = f"{1000 * masks:.0f}"
            elif masks is not None:
                table[row]["ms per image, masks (once, one core)"] = "none needed"
    return table


def describe(options: argparse.Namespace) -> dict[str, str]:
    """What was run, in words."""
    scale = SCALES[options.scale]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    pretraining = " ".join(scale.pretrain) or "the recipes' own"
    return {
        "scale": options.scale,
        "machine of the last call": machine,
        "pretraining": f"recipes METHOD_small, {pretraining}, stems {scale.resnet_stem} and {scale.vit_stem}",
        "pretraining images": "all" if scale.limit is None else f"the first {scale.limit}",
        "seg-probe on CamVid": in_words(scale.probe),
        "seg-probe on people and bags, a quarter held out": in_words(scale.foreground),
        "detect-small": f"short side {scale.detect_size}, {in_words(scale.detect)}",
        "Caltech-101 images a class": "all"
        if scale.per_class is None
        else f"the first {scale.per_class[0]} for training, {scale.per_class[1]} for testing",
        "seeds asked for": str(options.seeds),
    }


def in_words(changes: dict[str, str]) -> str:
    """Changed parameters as a phrase."""
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def write_page(options: argparse.Namespace, table: ClaimsTable, date: str) -> None:
    """docs/claims.md, its figure, and the numbers as JSON."""
    docs = options.docs
    docs.mkdir(parents=True, exist_ok=True)
    with atomic_write(docs / "claims.png") as part:
        bars(table.results()).savefig(part, format="png", dpi=110, facecolor="white")
    command = f"python benchmarks/claims.py --scale {options.scale} --seeds {options.seeds}"
    command += " --data .datasets --images DIR --budget-minutes M"
    with atomic_write(docs / "claims.md") as part:
        part.write_text(render(table, figure="claims.png", command=command, date=date))
    out = options.out or REPOSITORY / "benchmarks" / "results" / f"claims_{options.scale}.json"
    cells = [
        {"row": row, "column": column, "values": list(values)}
        for (row, column), values in table.values.items()
    ]
    write_json(
        out,
        {
            "scale": options.scale,
            "settings": dict(table.settings),
            "cells": cells,
            "costs": dict(table.costs),
            "missing": list(table.missing),
            "date": date,
        },
    )
    print(f"wrote {docs / 'claims.md'}, {docs / 'claims.png'}, {out}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--data", type=Path, default=Path(".datasets"), help="folder of the labelled sets")
    parser.add_argument("--images", type=Path, help="images to pretrain on  [DATA/imagenet1000]")
    parser.add_argument("--masks", type=Path, help="their mask file, if it was built before")
    parser.add_argument("--mask-recipe", default="fast", help="how masks are built without --masks")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="runs and result files")
    parser.add_argument("--scale", choices=list(SCALES), default="small" if cuda else "smoke")
    parser.add_argument("--methods", nargs="*", help="rows  [all, most telling first]")
    parser.add_argument(
        "--supervised", metavar="FILE", help="torchvision weights of a ResNet-18: one more row"
    )
    parser.add_argument("--columns", nargs="*", help="words of the titles to run  [all]")
    parser.add_argument("--seeds", type=int, default=3 if cuda else 2)
    parser.add_argument("--budget-minutes", type=float, default=25.0)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--workers", type=int, default=8 if cuda else 0)
    parser.add_argument("--render", action="store_true", help="only render what is there")
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs", help="where the page goes")
    parser.add_argument("--out", type=Path, help="the numbers  [benchmarks/results/claims_SCALE.json]")
    options = parser.parse_args(arguments)
    options.images = options.images or options.data / "imagenet1000"
    options.work = options.work / options.scale
    options.budget = Budget(time.monotonic() + 60 * options.budget_minutes)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run within the budget, render; 0 when nothing is left to do, 75 when time ran out."""
    options = parse(arguments)
    every = columns(SCALES[options.scale], options.data, options.work)
    todo = [column for column in every if not lacking(options, column)]
    if options.columns:
        todo = [column for column in todo if any(word in column.title for word in options.columns)]
    failed: list[str] = []
    code = 0
    start = datetime.datetime.now()
    if not options.render:
        try:
            failed = run_all(options, todo)
        except BudgetSpent:
            print("the budget is spent; the same command continues", file=sys.stderr)
            code = EXIT_STOPPED
    table, date = gather(options, every, failed)
    if not table.values:
        print("no result yet; nothing to render", file=sys.stderr)
        return code or 1
    write_page(options, table, date)
    print(f"{(datetime.datetime.now() - start).total_seconds() / 60:.1f} minutes")
    return code or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

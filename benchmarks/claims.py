"""Make the claims table: pretrain every method on the same images, measure each, render the page.

    python benchmarks/claims.py --scale cpu --data .datasets --images .datasets/tiny_dev100_train130/train

Rows are methods (and groups of rows that answer a question of their own: masks, lengths, starts, trials),
columns are protocols, every cell has a seed. Result files and runs lie under WORK; what is measured is
kept in benchmarks/results/claims_SCALE.json, is not measured again on any machine, and the page is made
from that file alone (`--render`). A pretraining cut off by the budget continues from its checkpoint. The
first seed goes over all rows before the second begins, so the table is whole early; columns that
fine-tune come last. Without `--masks default=FILE` the masks are built first and timed. Data sets that
are missing under --data leave their column out, which the page says.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from claims_columns import SCALES, Column, Scale, columns, settings_of
from claims_page import write_page
from claims_recipes import write_recipes
from claims_rows import GROUPS, METHOD_ROWS, RANDOM, ROWS, USES_MASKS, Row
from claims_store import ClaimsStore, cost, course, is_result

from hapicl.common.atomic_files import atomic_write
from hapicl.common.errors import UserError, did_you_mean
from hapicl.data.images.folder import find_images
from hapicl.engine.stop import EXIT_STOPPED, Stopped, raise_on_signals
from hapicl.evaluate.features import FeatureStore
from hapicl.evaluate.finetune import RunStopped
from hapicl.evaluate.result import read_result, write_result
from hapicl.evaluate.settings import Request, Runtime

REPOSITORY = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGTERM, signal.SIGINT)


PUBLIC = ("cpu", "resnet18")  # scales whose page is one of the docs
COST_STEPS = 16
LAST_STEP_SECONDS = 120  # that a command may take to save and leave


class BudgetSpent(Exception):
    """The time is up; what is missing waits for the next call."""


@dataclass(frozen=True)
class Plan:
    """What one call does; goes to other processes as it is."""

    scale_name: str
    data: Path
    images: Path
    work: Path
    masks: dict[str, Path]
    device: str
    workers: int  # loader processes of each pretraining
    jobs: int  # rows at a time
    end: float  # by time.monotonic()

    @property
    def scale(self) -> Scale:
        """How long and how large everything is."""
        return SCALES[self.scale_name]

    def left(self) -> float:
        """Seconds left; raises when there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise BudgetSpent
        return left


@dataclass(frozen=True)
class Job:
    """One row with one seed and the titles of the columns that it lacks."""

    row: str
    seed: int
    titles: tuple[str, ...]


def build_masks(plan: Plan, recipe: str) -> dict[str, Any]:
    """Build the default mask file once; gives what it cost."""
    masks, note = plan.masks["default"], plan.work / "masks.json"
    if masks.exists() and note.exists():
        return json.loads(note.read_text())  # type: ignore[no-any-return]
    start = time.perf_counter()
    limit = () if plan.scale.limit is None else ("--limit", str(plan.scale.limit))
    command = (
        "masks",
        "build",
        "--images",
        str(plan.images),
        "--out",
        str(masks),
        "--recipe",
        recipe,
        *limit,
    )
    run_command([*command, "--workers", "1"], plan.work / "masks.log", plan)
    count = plan.scale.limit or len(find_images(plan.images))
    seconds = (time.perf_counter() - start) / count
    content = {"recipe": recipe, "images": count, "seconds_per_image_one_core": seconds}
    write_json(note, content)
    return content


def run_command(arguments: list[str], log: Path, plan: Plan) -> None:
    """Run `hapicl ...`; when the budget ends or a signal comes, ask it to stop (it writes a checkpoint)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    plan.left()  # before anything starts
    threads = str(max(1, (os.cpu_count() or 1) // plan.jobs))
    with open(log, "a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hapicl", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ({"OMP_NUM_THREADS": threads} if plan.jobs > 1 else {}),
        )
        try:
            process.wait(timeout=plan.left())
        except subprocess.TimeoutExpired:
            raise BudgetSpent from None
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=LAST_STEP_SECONDS)
    if process.returncode == EXIT_STOPPED:
        raise BudgetSpent
    if process.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        raise UserError(f"hapicl {' '.join(arguments[:2])} failed ({process.returncode}): {last}; see {log}")


def pretrain_row(row: Row, seed: int, plan: Plan) -> Path:
    """Pretrain one row with one seed, or go on with it; give the backbone's file."""
    folder = plan.work / "runs" / run_name(row.name, seed)
    backbone, note = folder / "backbone.safetensors", course_file(plan.work, row.name, seed)
    if not (backbone.exists() and note.exists()):
        log = plan.work / "logs" / f"{run_name(row.name, seed)}.log"
        run_command(pretrain_command(row, seed, plan, folder), log, plan)
        write_json(note, course(folder))
    return backbone


def pretrain_command(row: Row, seed: int, plan: Plan, folder: Path, *, steps: int | None = None) -> list[str]:
    """`hapicl pretrain ...` for a row; a run that was left goes on by its own settings.

    `steps` is another length than the row's.
    """
    scale = plan.scale
    device = row.device or plan.device
    command = ["pretrain", "--out", str(folder), "--device", device, "--workers", str(plan.workers)]
    if (folder / "last.pt").exists():
        return [*command, "--resume", "auto"]
    command += ["--recipe", f"{row.method}_small", "--images", str(plan.images), "--seed", str(seed)]
    command += ["--image-size", str(scale.image_size), *scale.pretrain]
    arch, stem = scale.backbone(row)
    command += ["--arch", arch, "--set", f"stem={stem}"]
    if row.method in USES_MASKS:
        if row.masks not in plan.masks:
            raise UserError(f"no mask file {row.masks!r}: give --masks {row.masks}=FILE")
        command += ["--masks", str(plan.masks[row.masks])]
    if steps is None and scale.steps is not None:
        steps = round(scale.steps * row.length)
    if steps is not None:
        command += ["--steps", str(steps)]
    if scale.limit is not None:
        command += ["--set", f"limit={scale.limit}"]
    if row.after:
        first = plan.work / "runs" / run_name(row.after, seed) / "backbone.safetensors"
        if not first.exists():
            raise UserError(f"{row.name} starts from {row.after}, whose backbone is not under {plan.work}")
        command += ["--weights", str(first)]
    return command + [part for change in row.changes for part in ("--set", change)]


def run_name(row: str, seed: int) -> str:
    """A run's folder: the row's name in letters that any disk takes."""
    return f"{slug(row)}-s{seed}"


def course_file(work: Path, row: str, seed: int) -> Path:
    """Where the course of a run lies."""
    return work / "courses" / f"{run_name(row, seed)}.json"


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def slug(title: str) -> str:
    """A title as a file name."""
    return "".join(letter if letter.isalnum() or letter in "_." else "-" for letter in title.lower())


def cell_file(work: Path, column: str, row: str, seed: int) -> Path:
    """Where a cell lies."""
    return work / "results" / slug(column) / f"{run_name(row, seed)}.json"


def do(plan: Plan, job: Job) -> None:
    """Train a row with one seed, if it is to be trained, and measure what it lacks."""
    with raise_on_signals(SIGNALS):  # in a process of a pool it is not set yet
        _train_and_measure(plan, job)


def _train_and_measure(plan: Plan, job: Job) -> None:
    row = ROWS[job.row]
    weights = row.weights or str(pretrain_row(row, job.seed, plan))
    features = FeatureStore()  # kNN and the cached probe read the same images
    for column in columns(plan.scale, plan.data, plan.work):
        out = cell_file(plan.work, column.title, row.name, job.seed)
        if column.title not in job.titles or is_result(out, row.name):
            continue
        plan.left()
        result = measure(plan, row, job.seed, column, weights, out.with_suffix(".runs"), features)
        write_result({**result, "row": row.name, "column": column.title}, out)
        value, seconds = result["mean"][result["headline"]], result["runs"][0]["seconds"]
        print(f"{row.name} seed {job.seed}: {column.title} {100 * value:.1f} ({seconds:.0f} s)", flush=True)


def measure(
    plan: Plan,
    row: Row,
    seed: int,
    column: Column,
    weights: str,
    folder: Path,
    features: FeatureStore,
) -> dict[str, Any]:
    """Measure one cell; features of the row's other cells are taken from the store."""
    arch, stem = plan.scale.backbone(row)
    request = Request(
        weights=weights,
        protocol="",
        arch=None if row.method else arch,
        stem=stem,
        seed=seed,
        runtime=Runtime(
            device=torch.device(plan.device), workers=plan.workers, folder=folder, store=features
        ),
        say=lambda text: None,
    )
    try:
        result, _ = column.run(request)
    except RunStopped:  # a signal: the cell goes on from its checkpoint in the next call
        raise BudgetSpent from None
    for checkpoint in folder.rglob("*.pt"):
        checkpoint.unlink()
    return result


def jobs_of(batches: list[list[Row]], seeds: int, todo: list[Column], store: ClaimsStore) -> list[Job]:
    """What is missing, most wanted first: batch by batch, cheap columns before those that fine-tune."""
    jobs = []
    for rows in batches:
        for costly in (False, True):
            some = [column for column in todo if column.costly is costly]
            for seed, row in product(range(seeds), rows):
                titles = tuple(
                    column.title
                    for column in some
                    if (row.name, column.title, seed) not in store and column.takes(row)
                )
                jobs += [Job(row.name, seed, titles)] if titles else []
    return jobs


def measure_costs(plan: Plan, store: ClaimsStore) -> None:
    """Train each method for a few steps, alone, and keep what an image costs; what is there stays."""
    for row in METHOD_ROWS:
        if row.name in store.costs:
            continue
        folder = plan.work / "costs" / slug(row.name)
        shutil.rmtree(folder, ignore_errors=True)
        command = pretrain_command(row, 0, plan, folder, steps=COST_STEPS)
        run_command([*command, "--set", "log_every=4"], folder.with_suffix(".log"), plan)
        store.add_cost(row.name, cost(folder) | {"threads": torch.get_num_threads()})
        print(f"{row.name}: {1000 * store.costs[row.name]['seconds_per_image']:.1f} ms an image", flush=True)


def run_all(plan: Plan, jobs: list[Job]) -> list[str]:
    """Run what is missing; give a line for everything that failed."""
    failed: dict[tuple[str, int], str] = {}

    def finish(job: Job, get: Callable[[], None]) -> None:
        """One row's mistake must not cost the others their turn; its own second job falls away."""
        try:
            get()
        except UserError as error:
            print(f"{job.row} seed {job.seed}: {error}", file=sys.stderr, flush=True)
            failed[job.row, job.seed] = f"{job.row}, seed {job.seed}: {error}"

    if plan.jobs > 1:
        run_together(plan, jobs, finish, failed)
    else:
        for job in jobs:
            if (job.row, job.seed) not in failed:
                finish(job, partial(do, plan, job))
    return list(failed.values())


def run_together(
    plan: Plan, jobs: list[Job], finish: Callable[[Job, Callable[[], None]], None], failed: Container[Any]
) -> None:
    """Several rows at a time, each in a process of its own.

    A row's second job waits until its first has trained it, and a row that starts from another for that one.
    """
    busy: dict[Future[None], Job] = {}
    waiting, done = list(jobs), set[tuple[str, int]]()
    first = {(job.row, job.seed): job for job in reversed(jobs)}

    def ready(job: Job) -> bool:
        me, before = (job.row, job.seed), (ROWS[job.row].after, job.seed)
        return (job is first[me] or me in done) and (before not in first or before in done)

    # spawned: a fork would take CUDA along
    with ProcessPoolExecutor(plan.jobs, get_context("spawn"), _share_cores, (plan.jobs,)) as pool:
        try:
            while waiting or busy:
                for job in [job for job in waiting if ready(job)][: plan.jobs - len(busy)]:
                    waiting.remove(job)
                    busy[pool.submit(do, plan, job)] = job
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    job = busy.pop(future)
                    finish(job, future.result)
                    done.add((job.row, job.seed))
                    waiting = [other for other in waiting if (other.row, other.seed) not in failed]
        except Stopped:
            for (
                process
            ) in psutil.Process().children():  # the pool waits for them, and they for their training
                process.terminate()
            raise


def _share_cores(jobs: int) -> None:
    """Threads of one process among several."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def collect(store: ClaimsStore, work: Path, every: list[Column]) -> None:
    """Take everything that lies in the work folder into the store."""
    for row in ROWS:
        for column in every:
            files = (work / "results" / slug(column.title)).glob(f"{slug(row)}-s*.json")
            for path in files:
                seed = int(path.stem.rpartition("-s")[2])
                if path == cell_file(work, column.title, row, seed) and is_result(path, row):
                    store.add_cell(row, column.title, seed, read_result(path))
        for path in (work / "courses").glob(f"{slug(row)}-s*.json"):
            seed = int(path.stem.rpartition("-s")[2])
            if path == course_file(work, row, seed):
                store.add_run(row, seed, json.loads(path.read_text()))


def batches_of(asked: list[list[str]]) -> list[list[Row]]:
    """Rows in their order: the random starts, then the asked groups and rows, batch by batch."""
    unknown = [name for names in asked for name in names if name not in GROUPS and name not in ROWS]
    if unknown:
        hint = did_you_mean(unknown[0], [*GROUPS, *ROWS])
        raise UserError(f"--rows {unknown[0]}{hint}: choose of {', '.join([*GROUPS, *ROWS])}")
    found: list[list[Row]] = [[]]
    seen: set[str] = set()
    for names in asked:
        rows = [row for name in names for row in (GROUPS.get(name) or (ROWS[name],))]
        rows = [*(ROWS[row.after] for row in rows if row.after), *rows]
        found.append([row for row in dict.fromkeys(rows) if row.name not in seen])
        seen |= {row.name for row in rows}
    starts = {ROWS[name].start for name in seen} | {"random-untouched"}
    found[0] = [row for row in RANDOM if row.name in starts and row.name not in seen]
    return found


def lacking(data: Path, column: Column) -> bool:
    """Whether a column's data is not there."""
    return not all((data / name).is_dir() for name in column.needs)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--data", type=Path, default=Path(".datasets"), help="folder of the labelled sets")
    parser.add_argument("--images", type=Path, help="images to pretrain on  [the scale's, below DATA]")
    parser.add_argument("--masks", nargs="*", default=[], metavar="NAME=FILE", help="mask files built before")
    parser.add_argument("--mask-recipe", default="quality", help="how masks are built without --masks")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="runs and result files")
    parser.add_argument("--scale", choices=list(SCALES), default="cpu")
    parser.add_argument(
        "--rows",
        nargs="*",
        action="append",
        help=f"rows or groups ({', '.join(GROUPS)}); given again: a batch that comes after  [methods]",
    )
    parser.add_argument("--columns", nargs="*", help="words of the titles to run  [all]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget-minutes", type=float, default=25.0)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each run")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument(
        "--costs",
        action="store_true",
        help=f"only train every method for {COST_STEPS} steps and keep its cost; nothing else should run",
    )
    parser.add_argument("--render", action="store_true", help="only collect and render what is there")
    parser.add_argument(
        "--docs", type=Path, help="where the page goes  [docs/ for cpu and resnet18, else WORK]"
    )
    parser.add_argument("--out", type=Path, help="the numbers  [benchmarks/results/claims_SCALE.json]")
    parser.add_argument("--recipes", type=Path, help="small recipes whose `measured` is renewed  [none]")
    options = parser.parse_args(arguments)
    options.rows = options.rows or [["methods"]]
    options.images = options.images or options.data / SCALES[options.scale].images
    options.work = options.work / options.scale
    options.docs = options.docs or (REPOSITORY / "docs" if options.scale in PUBLIC else options.work)
    options.out = options.out or REPOSITORY / "benchmarks" / "results" / f"claims_{options.scale}.json"
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    """The options as a plan."""
    named = dict(text.split("=", 1) if "=" in text else ("default", text) for text in options.masks)
    masks = {"default": options.work / "masks.h5"} | {name: Path(file) for name, file in named.items()}
    return Plan(
        scale_name=options.scale,
        data=options.data,
        images=options.images,
        work=options.work,
        masks=masks,
        device=options.device,
        workers=options.workers,
        jobs=options.jobs,
        end=time.monotonic() + 60 * options.budget_minutes,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run within the budget, render; 0 when nothing is left to do, 75 when time ran out."""
    options = parse(arguments)
    plan = plan_of(options)
    store = ClaimsStore(options.out, options.scale, settings_of(plan.scale))
    every = columns(plan.scale, plan.data, plan.work)
    collect(store, plan.work, every)
    todo = [column for column in every if not lacking(plan.data, column)]
    if options.columns:
        todo = [column for column in todo if any(word in column.title for word in options.columns)]
    failed: list[str] = []
    code = 0
    if not options.render:
        try:
            with raise_on_signals(SIGNALS):
                batches = batches_of(options.rows)
                needed = options.costs or any(row.method in USES_MASKS for rows in batches for row in rows)
                if needed and plan.masks["default"] == plan.work / "masks.h5":
                    store.masks = build_masks(plan, options.mask_recipe)
                if options.costs:
                    measure_costs(plan, store)
                else:
                    failed = run_all(plan, jobs_of(batches, options.seeds, todo, store))
        except (BudgetSpent, Stopped) as end:
            why = f"stopped by {end.name}" if isinstance(end, Stopped) else "the budget is spent"
            print(f"{why}; the same command continues", file=sys.stderr)
            code = EXIT_STOPPED
        collect(store, plan.work, every)
    if not store.cells:
        print("no result yet; nothing to render", file=sys.stderr)
        return code or 1
    store.save()
    write_page(options.docs, store, every, failed)
    if options.recipes is not None:
        write_recipes(store, options.recipes)
    return code or int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")

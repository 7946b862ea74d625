"""Building a mask file: plan, run, join; whatever interrupts it, the next run takes up the finished parts."""

from __future__ import annotations

import bisect
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np

from ...common.atomic_files import refuse_unwritable
from ...common.errors import UserError
from ...data.images.folder import find_images
from ...data.masks.format import STATUSES
from ...data.masks.reader import MaskReader
from ...data.masks.writer import MaskRow, write_masks
from ...data.path_keys import encode_path
from ..recipes import Recipe, get_recipe
from .changes import finished_as_asked, plan_build
from .merge import describe, finish, save_unfinished
from .plan import PartsFolder, Plan
from .pool import BACKENDS, Runner, default_workers
from .worker import RecipeRows, RowMaker

# called with (images done, images to do, images without a mask)
Progress = Callable[[int, int, int], None]


class BuildInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a build; what was finished is kept. `number` is the signal's."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True)
class BuildSummary:
    """What a build did and what its file holds.

    Attributes:
        out: the mask file.
        built: images worked on by this call.
        seconds: duration of this call.
        counts: rows per status, by name; empty for a shard, which writes no file.
        failures: path -> reason for rows without a mask.
        already_finished: nothing had to be done.
        missing_parts: parts that other shards have still to make.
    """

    out: Path
    built: int
    seconds: float
    counts: dict[str, int]
    failures: dict[str, str]
    already_finished: bool = False
    missing_parts: int = 0

    @property
    def images(self) -> int:
        """Rows of the file."""
        return sum(self.counts.values())


def build_masks(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str] = "masks.h5",
    *,
    recipe: str | Recipe = "quality",
    workers: int | None = None,
    limit: int | None = None,
    backend: str = "loky",
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
    update: bool = False,
    progress: Progress | None = None,
) -> BuildSummary:
    """Find the foreground of every image in a folder and store the masks in one file.

    An interrupted or killed build is continued by the same call; a finished file is left as it is.

    Args:
        images: the image folder, flat or nested.
        out: the mask file; unfinished parts lie beside it in `<out>.parts`.
        recipe: its name, or a recipe of your own.
        workers: processes; by default as many as there are cores for this process.
        limit: only the first so many images in order of their paths.
        backend: "loky" (processes here), "dask" or "ray" (a cluster).
        scheduler: address of a running dask or ray cluster.
        shard: (i, n), i from 1: work only on every n-th part; `hapicl masks merge` joins them.
        update: bring an existing file up to date with a changed folder; masks of unchanged images are kept.
        progress: called as images are finished.

    Returns:
        What was done.

    Raises:
        UserError: for a missing or empty folder, a file built otherwise, one that cannot be written, ...
        BuildInterrupted: on Ctrl-C or SIGTERM, after saving what is finished.
    """
    return build_rows(
        images,
        out,
        RecipeRows(get_recipe(recipe)),
        workers=workers,
        limit=limit,
        backend=backend,
        scheduler=scheduler,
        shard=shard,
        update=update,
        progress=progress,
    )


def build_rows(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    maker: RowMaker,
    *,
    workers: int | None = None,
    limit: int | None = None,
    backend: str = "loky",
    scheduler: str | None = None,
    shard: tuple[int, int] | None = None,
    update: bool = False,
    progress: Progress | None = None,
) -> BuildSummary:
    """Build a mask file whose rows any `RowMaker` makes; otherwise as `build_masks`."""
    start = time.monotonic()
    _check_options(workers, limit, backend, scheduler, shard)
    root, target, recipe = Path(images).resolve(), Path(out), maker.as_dict()
    paths = find_images(root)[:limit]
    if not paths:
        raise UserError(f"no images in {root}; give the folder that holds them, at any depth")
    parts = PartsFolder(target)
    if finished_as_asked(target, str(root), recipe, paths, update=update):
        _remove_unneeded(parts)
        return summarize(target, 0, start, already_finished=True)
    refuse_unwritable(target)
    runner = Runner(str(root), maker, backend, workers or default_workers(), scheduler)
    with parts.locked(shard):
        # asked again: another process may have finished it since
        if finished_as_asked(target, str(root), recipe, paths, update=update):
            parts.remove()
            return summarize(target, 0, start, already_finished=True)
        plan = plan_build(target, parts, str(root), recipe, paths, update=update)
        built = _work(target, parts, plan, runner, shard, progress)
        if shard:
            missing = plan.parts - len(parts.finished())
            seconds = time.monotonic() - start
            return BuildSummary(target, built, seconds, {}, _failures(parts), missing_parts=missing)
        finish(target, parts)
        parts.remove()
    return summarize(target, built, start)


def _remove_unneeded(parts: PartsFolder) -> None:
    """Remove the parts of a file that is finished, unless its builder is about to do so."""
    if parts.path.is_dir():
        with suppress(UserError), parts.locked():
            parts.remove()


def summarize(out: Path, built: int, start: float, *, already_finished: bool = False) -> BuildSummary:
    """Read from a mask file what a summary says of it; `start` is the monotonic time when the call began."""
    reader = MaskReader(out)
    amounts = np.bincount(reader.column("status"), minlength=len(STATUSES)).tolist()
    counts = {status.value: amount for status, amount in zip(STATUSES, amounts, strict=True)}
    seconds = time.monotonic() - start
    return BuildSummary(out, built, seconds, counts, reader.reasons(), already_finished=already_finished)


def _check_options(
    workers: int | None, limit: int | None, backend: str, scheduler: str | None, shard: tuple[int, int] | None
) -> None:
    """Refuse options that make no sense.

    Raises:
        UserError: naming the option.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give at least 1")
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if scheduler is not None and backend == "loky":
        raise UserError("--scheduler has no meaning for loky; add --backend dask or --backend ray")
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise UserError(f"--shard {shard[0]}/{shard[1]}: give i/n with i from 1 to n")


def _work(
    out: Path,
    parts: PartsFolder,
    plan: Plan,
    runner: Runner,
    shard: tuple[int, int] | None,
    progress: Progress | None,
) -> int:
    """Make the parts that are not there yet; returns the number of images worked on.

    Raises:
        UserError: as the work does, adding how to go on.
        BuildInterrupted: after saving what is finished.
    """
    own = range(plan.parts) if shard is None else range(shard[0] - 1, plan.parts, shard[1])
    finished = set(parts.finished())
    todo = [index for index in own if index not in finished]
    total = sum(len(plan.part(index)) for index in own)
    before = total - sum(len(plan.part(index)) for index in todo)
    try:
        with _signals_raise(), runner.started():
            return _make_parts(parts, plan, runner, todo, _Counter(progress, before, total))
    except _Stopped as stop:
        _report_interruption(out, parts, plan, stop.number, saves=shard is None and not plan.base)
    except UserError as error:
        kept = f"{len(parts.finished())} of {plan.parts} parts are kept in {parts.path}"
        raise UserError(
            f"{error}; {kept}: put it right and run the same command again to continue"
        ) from error


def _make_parts(
    parts: PartsFolder, plan: Plan, runner: Runner, todo: Sequence[int], counter: _Counter
) -> int:
    """Run the tasks of some parts and write each part when it is whole."""
    rows: defaultdict[int, list[MaskRow]] = defaultdict(list)
    seconds: defaultdict[int, float] = defaultdict(float)
    built = 0
    for result in runner.results(plan.tasks(todo)):
        position = bisect.bisect_left(plan.paths, encode_path(result.rows[0].path), key=encode_path)
        index = position // plan.part_images
        rows[index] += result.rows
        seconds[index] += result.seconds
        built += len(result.rows)
        counter.add(result.rows)
        if len(rows[index]) == len(plan.part(index)):
            description = describe(
                plan.recipe, plan.image_root, worker_seconds=seconds.pop(index), part=index
            )
            write_masks(parts.part_path(index), rows.pop(index), description)
    return built


class _Counter:
    """Counts images and failures for the progress display."""

    def __init__(self, progress: Progress | None, done: int, total: int) -> None:
        self._progress, self._done, self._total, self._failures = progress, done, total, 0
        self.add([])

    def add(self, rows: Sequence[MaskRow]) -> None:
        self._done += len(rows)
        self._failures += sum(bool(row.reason) for row in rows)
        if self._progress is not None:
            self._progress(self._done, self._total, self._failures)


class _Stopped(BaseException):
    """A signal arrived; raised by its handler."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `_Stopped` while the work runs; other threads than the main get none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report_interruption(out: Path, parts: PartsFolder, plan: Plan, number: int, *, saves: bool) -> NoReturn:
    """Save what is finished as a usable file and say so.

    Raises:
        BuildInterrupted: always.
    """
    name = signal.Signals(number).name
    rows = save_unfinished(out, parts) if saves else 0
    state = f"{len(parts.finished())} of {plan.parts} parts are finished"
    usable = f"; their {rows} masks can be used already from {out}" if rows else ""
    raise BuildInterrupted(
        f"stopped by {name}: {state}{usable}; run the same command again to continue", number
    )


def _failures(parts: PartsFolder) -> dict[str, str]:
    """Path -> reason over the finished parts."""
    return {path: reason for reader in parts.readers() for path, reason in reader.reasons().items()}

"""Building a mask file: plan, run, join; whatever interrupts it, the next run takes up what is finished."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np

from ...common.atomic_files import refuse_unwritable
from ...common.errors import UserError
from ...data.images import open_originals
from ...data.images.store import OriginalImages
from ...data.masks.format import STATUSES, read_recipe
from ...data.masks.reader import MaskReader
from ...data.masks.writer import MaskRow, write_masks
from ..recipes import MaskRecipe, get_recipe
from .changes import is_up_to_date, plan_build
from .merge import describe, join_part_files, save_unfinished
from .plan import BuildRequest, PartFiles, Plan, as_json
from .pool import Runner
from .settings import BuildSettings
from .worker import RowMaker

# called with (images done, images to do, images without a mask)
Progress = Callable[[int, int, int], None]


class BuildInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a build; what was finished is kept. `number` is the signal's."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


logger = logging.getLogger("hapicl.maskgen")


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
        missing_part_files: those that other shards have still to make.
    """

    out: Path
    built: int
    seconds: float
    counts: dict[str, int]
    failures: dict[str, str]
    already_finished: bool = False
    missing_part_files: int = 0

    @property
    def images(self) -> int:
        """Rows of the file."""
        return sum(self.counts.values())


def build_masks(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str] = "masks.h5",
    recipe: str | MaskRecipe = "quality",
    settings: BuildSettings | None = None,
    *,
    progress: Progress | None = None,
) -> BuildSummary:
    """Find the foreground of every image of a folder, or of archives, and store the masks in one file.

    An interrupted or killed build is continued by the same call; a finished file is left as it is.

    Args:
        images: the image folder, flat or nested; or archives or a URL, see `data.images.open_originals`.
        out: the mask file; the part files of an unfinished build lie beside it in `<out>.parts`.
        recipe: its name, or a recipe of your own.
        settings: worker processes, shards and the like; by default one process for each core.
        progress: called as images are finished.

    Returns:
        What was done.

    Raises:
        UserError: for a missing or empty folder, a file built otherwise, one that cannot be written, ...
        BuildInterrupted: on Ctrl-C or SIGTERM, after saving what is finished.

    Examples:
        >>> summary = build_masks("photos", "new.h5", "fast")
        >>> summary.images, summary.failures
        (8, {})
    """
    # here, since it compiles kernels, which looking at masks and importing them do without
    from .recipe_rows import RecipeRows

    return build_rows(images, out, RecipeRows(get_recipe(recipe)), settings, progress=progress)


def build_rows(
    images: str | os.PathLike[str] | OriginalImages,
    out: str | os.PathLike[str],
    maker: RowMaker,
    settings: BuildSettings | None = None,
    *,
    paths: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> BuildSummary:
    """Build a mask file whose rows any `RowMaker` makes; otherwise as `build_masks`.

    `images` may be open already. `paths`, sorted, says which of them; None takes all.
    """
    start = time.monotonic()
    settings = settings or BuildSettings()
    opened = open_originals(images) if isinstance(images, str | os.PathLike) else images
    paths = (opened.paths() if paths is None else paths)[: settings.limit]
    if not paths:
        raise UserError(f"no images in {opened.location}; give the folder that holds them, at any depth")
    recipe = read_recipe(as_json(maker.as_dict()))
    request = BuildRequest(Path(out), opened, recipe, paths, settings.update)
    parts = PartFiles(request.out)
    if is_up_to_date(request):
        _remove_unneeded(parts)
        return summarize(request.out, 0, start, already_finished=True)
    refuse_unwritable(request.out)
    with parts.locked(settings.shard):
        if is_up_to_date(request):  # asked again: another process may have finished it since
            parts.remove()
            return summarize(request.out, 0, start, already_finished=True)
        build = _Build(plan_build(request, parts), parts, Runner(opened, maker, settings), settings.shard)
        built = build.run(progress)
        if settings.shard:
            missing = build.plan.part_files - len(parts.finished())
            seconds = time.monotonic() - start
            return BuildSummary(request.out, built, seconds, {}, build.failures(), missing_part_files=missing)
        join_part_files(request.out, parts)
        parts.remove()
    return summarize(request.out, built, start)


def _remove_unneeded(parts: PartFiles) -> None:
    """Remove the part files of a file that is finished, unless its builder is about to do so."""
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


@dataclass(frozen=True)
class _Build:
    """The work of one call: a plan, where its part files go, who makes them, and which are its own."""

    plan: Plan
    parts: PartFiles
    runner: Runner
    shard: tuple[int, int] | None

    def run(self, progress: Progress | None) -> int:
        """Make the part files that are not there yet; returns the number of images worked on.

        Raises:
            UserError: as the work does, adding how to go on.
            BuildInterrupted: after saving what is finished.
        """
        first, step = (self.shard[0] - 1, self.shard[1]) if self.shard else (0, 1)
        own, finished = range(first, self.plan.part_files, step), set(self.parts.finished())
        if self.shard and not own:
            logger.warning(
                "shard %d/%d has no images: %d images are too few for more shards than i/%d",
                *self.shard,
                len(self.plan.paths),
                self.plan.part_files,
            )
        todo = [part for part in own if part not in finished]
        total, left = self._images(own), self._images(todo)
        try:
            with _signals_raise(), self.runner.started():
                return self._make_part_files(todo, _Counter(progress, total - left, total))
        except _Stopped as stop:
            self._report_interruption(stop.number)
        except UserError as error:
            raise UserError(
                f"{error}; {self._state()} kept in {self.parts.path}: put it right and run the same command "
                "again to continue"
            ) from error

    def failures(self) -> dict[str, str]:
        """Path -> reason over the finished part files."""
        return {path: reason for reader in self.parts.readers() for path, reason in reader.reasons().items()}

    def _make_part_files(self, todo: Sequence[int], counter: _Counter) -> int:
        """Run the tasks of some part files and write each when it is whole."""
        rows: defaultdict[int, list[MaskRow]] = defaultdict(list)
        seconds: defaultdict[int, float] = defaultdict(float)
        built = 0
        with closing(self.runner.results(self.plan.tasks(todo))) as results:
            for result in results:
                part = result.task.part
                rows[part] += result.rows
                seconds[part] += result.seconds
                built += len(result.rows)
                counter.add(result.rows)
                if len(rows[part]) == len(self.plan.part_paths(part)):
                    description = describe(
                        self.plan.recipe, self.plan.image_root, worker_seconds=seconds.pop(part), part=part
                    )
                    write_masks(self.parts.part_path(part), rows.pop(part), description)
        return built

    def _images(self, parts: Sequence[int]) -> int:
        """How many images some part files hold."""
        return sum(len(self.plan.part_paths(part)) for part in parts)

    def _state(self) -> str:
        """How far the build is, in words."""
        return f"{len(self.parts.finished())} of {self.plan.part_files} part files are"

    def _report_interruption(self, number: int) -> NoReturn:
        """Save what is finished as a usable file and say so.

        Raises:
            BuildInterrupted: always.
        """
        saves = self.shard is None and not self.plan.base
        rows = save_unfinished(self.parts.out, self.parts) if saves else 0
        usable = f"; their {rows} masks can be used already from {self.parts.out}" if rows else ""
        raise BuildInterrupted(
            f"stopped by {signal.Signals(number).name}: {self._state()} finished{usable}; run the same "
            "command again to continue",
            number,
        )


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

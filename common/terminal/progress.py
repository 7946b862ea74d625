"""How far a long command is: a bar with the remaining time on a terminal, else a plain line now and then.

A batch system's log is read as text, where a bar that redraws itself leaves nothing or garbage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

LINE_SECONDS = 30.0

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]  # what is done, and how much there is
Totals = Callable[[int, int, int], None]  # done, of how many, failures among them


@contextmanager
def show_progress(what: str, total: int, *, stream: TextIO | None = None) -> Iterator[Advance]:
    """Show how much of a piece of work is done, on stderr.

    Args:
        what: the work, such as `features of the training images`.
        total: how much there is.
        stream: where lines go; None is stderr.

    Yields:
        A function that takes how much was done since its last call.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        yield PlainLines(what, total, stream=stream, every=LINE_SECONDS)


@contextmanager
def show_totals(what: str, *, stream: TextIO | None = None) -> Iterator[Totals]:
    """Show how far a build of images is, on stderr: by what is done altogether, not by what is new.

    Args:
        what: the work, such as `masks`.
        stream: where lines go; None is stderr.

    Yields:
        A function that takes the images done, those there are, and the failures among them. Its first call
        says what earlier runs finished, which does not count as speed.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        with _totals_bar(what) as move:
            yield move
        return
    lines: list[PlainLines] = []

    def tell(done: int, total: int, failures: int) -> None:
        if not lines:
            lines.append(
                PlainLines(what, total, stream=stream, every=LINE_SECONDS, begun=done, unit="images")
            )
        lines[0](done - lines[0].done, failures=failures)

    yield tell


@contextmanager
def no_progress(what: str, total: int) -> Iterator[Advance]:
    """Show nothing; for calls from Python."""
    yield lambda done: None


class PlainLines:
    """A line at most every 30 seconds: done, of how many, remaining time; none for what is sooner over."""

    def __init__(
        self,
        what: str,
        total: int,
        *,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        every: float = LINE_SECONDS,
        begun: int = 0,
        unit: str = "",
    ) -> None:
        """Start the clock.

        Args:
            what: the work.
            total: how much there is.
            stream: where lines go.
            clock: gives seconds.
            every: so many seconds a line.
            begun: how much was done before; it is counted, but not as speed.
            unit: of what is done, where a rate is wanted.
        """
        self.what, self.total, self.stream, self.clock, self.every = what, total, stream, clock, every
        self.done, self.begun, self.unit = begun, begun, unit
        self.start = self.last = clock()

    def __call__(self, done: int, *, failures: int = 0) -> None:
        """Count, and write a line where it is time."""
        self.done += done
        now = self.clock()
        new = self.done - self.begun
        if now - self.last < self.every or not new:
            return
        self.last = now
        left = (now - self.start) / new * (self.total - self.done)
        percent = 100 * self.done / self.total
        rate = f", {new / (now - self.start):.1f} {self.unit}/s" if self.unit else ""
        failed = f", {failures} failed" if failures else ""
        done_of = f"{self.done:,} of {self.total:,} ({percent:.0f} %)"
        self.stream.write(f"{self.what}: {done_of}{rate}, {duration(left)} left{failed}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds as `1:02:03`, `2:03` or `0:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    """Rich's bar, gone when the work is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .printable import console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def _totals_bar(what: str) -> Iterator[Totals]:
    """Rich's bar with rate and failures; it stays."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .printable import console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]}"),
    )
    with Progress(*columns, console=console(stderr=True), speed_estimate_period=60) as bar:

        def move(done: int, total: int, failures: int) -> None:
            if not bar.tasks:
                bar.add_task(what, total=total, completed=done, rate="", failures="")
            speed = bar.tasks[0].speed
            bar.update(
                bar.tasks[0].id,
                completed=done,
                rate=f"{speed:.1f} images/s" if speed else "",
                failures=f"{failures} failed" if failures else "",
            )

        yield move

"""How far a long command is: a bar with the remaining time on a terminal, else a plain line now and then.

A batch system's log is read as text, where a bar that redraws itself leaves nothing or garbage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

LINE_SECONDS = 30.0

Advance = Callable[[int], None]


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
    ) -> None:
        """Start the clock."""
        self.what, self.total, self.stream, self.clock, self.every = what, total, stream, clock, every
        self.done = 0
        self.start = self.last = clock()

    def __call__(self, done: int) -> None:
        """Count, and write a line where it is time."""
        self.done += done
        now = self.clock()
        if now - self.last < self.every or not self.done:
            return
        self.last = now
        left = (now - self.start) / self.done * (self.total - self.done)
        percent = 100 * self.done / self.total
        self.stream.write(
            f"{self.what}: {self.done:,} of {self.total:,} ({percent:.0f} %), {duration(left)} left\n"
        )
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

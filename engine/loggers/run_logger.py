"""What a run leaves besides weights: metrics.jsonl, train.log, the progress bar, and dashboards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...common.errors import UserError
from ...common.terminal.printable import console
from .dashboards import Feed, RunFacts, open_feed
from .run_files import LOG, LOSS, METRICS, drop_from

SHOWN_TERMS = 5  # of the loss, on the bar


class RunLogger:
    """Writes one run folder; with `folder=None` it is silent, as on every process but the first.

    A context: files and dashboards are closed on exit. After a resume, lines past the resumed step are
    dropped, so that metrics.jsonl holds every step once.

    Args:
        folder: of the run.
        total: optimiser steps of the run.
        resumed_step: steps done before this session.
        show: whether progress and sentences go to the terminal too.
        dashboards: names of `dashboards.DASHBOARDS`; their failures are told once and end nothing.
        config: what the dashboards show of the run's settings.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        total: int,
        resumed_step: int = 0,
        show: bool = True,
        dashboards: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self._total = total
        self._start = resumed_step
        self._console = console(stderr=True, quiet=not show or folder is None)
        self._dashboards, self._config = dashboards, config or {}
        self._feeds: list[Feed] = []
        self._bar: Progress | None = None
        self._shown: dict[str, float] = {}  # the newest of every number

    def __enter__(self) -> RunLogger:
        if self.folder is None:
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {self.folder}: {error.strerror}; choose another --out"
            ) from error
        drop_from(self.folder / METRICS, self._start)
        facts = RunFacts(self.folder, self._config, self._start, show=not self._console.quiet)
        self._feeds = [open_feed(name, facts) for name in self._dashboards]
        self._tell_of_dashboards()
        if self._console.is_terminal and not self._console.quiet:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self._console,
                refresh_per_second=4,
                # the remaining time counts pauses too (checkpoints, a kNN), and outlives them
                speed_estimate_period=3600,
            )
            self._bar.add_task("", total=self._total, completed=self._start)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        for feed in self._feeds:
            feed.close(failed=kind is not None)
        self._tell_of_dashboards()

    def advance(self, step: int) -> None:
        """Move the bar to `step` done."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def show_activity(self, text: str) -> None:
        """Say on the bar what else goes on, beside the loss, until the next numbers are recorded."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=f"{one_line(self._shown)}  {text}".strip())

    def record(self, step: int, values: dict[str, float]) -> None:
        """Write one line of numbers for `step` optimiser steps done."""
        if self.folder is None:
            return
        with open(self.folder / METRICS, "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")
        for feed in self._feeds:
            feed.record(step, values)
        self._tell_of_dashboards()
        text = one_line(values)
        if self._bar is not None:
            # between two lines of the loop something else may be recorded (a kNN): the loss stays in view
            self._shown |= values
            self._bar.update(self._bar.task_ids[0], completed=step, description=one_line(self._shown))
        else:
            self._console.print(f"step {step}/{self._total}  {text}", soft_wrap=True)
        self._log(f"step {step}/{self._total}  {text}")

    def info(self, text: str) -> None:
        """Tell the user and train.log one sentence."""
        if self.folder is None:
            return
        self._console.print(text, soft_wrap=True)
        self._log(text)

    def _tell_of_dashboards(self) -> None:
        """Say of each dashboard that failed, once, that it is given up."""
        for feed in self._feeds:
            if sentence := feed.take_complaint():
                self.info(f"warning: {sentence}")

    def _log(self, text: str) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        # a name in the text may hold bytes that are not UTF-8
        with open(self.folder / LOG, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')}  {text}\n")


def one_line(values: dict[str, float]) -> str:
    """Loss, its terms, kNN and speed, short enough for a terminal's line; anything else where these lack."""
    terms = [name for name in values if name.startswith(LOSS)][:SHOWN_TERMS]
    words = [f"{name.removeprefix(LOSS)} {values[name]:.4g}" for name in ("loss", *terms) if name in values]
    if "knn/accuracy" in values:
        words.append(f"kNN {values['knn/accuracy']:.1%}")
    if "speed/samples_per_second" in values:
        words.append(f"{values['speed/samples_per_second']:.3g} samples/s")
        words.append(f"data wait {values['speed/data_wait_fraction']:.0%}")
    return "  ".join(words) or "  ".join(f"{name} {value:.4g}" for name, value in values.items())

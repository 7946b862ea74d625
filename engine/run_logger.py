"""What a run leaves besides weights: metrics.jsonl, TensorBoard events, train.log, the progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..common.atomic_files import atomic_write
from ..common.errors import UserError
from ..common.terminal.printable import console

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSS, CHANCE = "loss/", "chance/"  # groups of the loss terms and of their values at chance level
OLD_KEY = "samples_per_second"  # in metrics.jsonl before numbers were grouped by slash
SHOWN_TERMS = 5  # of the loss, on the bar
METRICS, LOG, CONFIG, EVENTS = "metrics.jsonl", "train.log", "config.json", "tensorboard"


class RunLogger:
    """Writes one run folder; with `folder=None` it is silent, as on every process but the first.

    A context: the files are closed on exit. After a resume, lines at or past the resumed step are
    dropped, so that metrics.jsonl holds every step once.
    """

    def __init__(self, folder: Path | None, *, total: int, resumed_step: int = 0, show: bool = True) -> None:
        self.folder = folder
        self._total = total
        self._start = resumed_step
        self._console = console(stderr=True, quiet=not show or folder is None)
        self._events: SummaryWriter | None = None
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
        _drop_from(self.folder / METRICS, self._start)
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(self.folder / EVENTS), purge_step=self._start or None)
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
        if self._events is not None:
            self._events.close()

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
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
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

    def _log(self, text: str) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        # a name in the text may hold bytes that are not UTF-8
        with open(self.folder / LOG, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')}  {text}\n")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, whole."""
    with atomic_write(folder / CONFIG) as part:
        part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run folder's config.json.

    Raises:
        UserError: if it is missing, not JSON, or no run's; names the folder.
    """
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder} is no run folder: it has no {CONFIG}; give the --out of a `hapicl pretrain`"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); was it edited?") from error
    if not isinstance(config, dict) or not {"settings", "data", "total_steps"} <= config.keys():
        raise UserError(f"{path} is not the {CONFIG} of a run; give the --out of a `hapicl pretrain`")
    if "accumulate" in config["settings"]:  # every config.json named it so before 1.0
        raise UserError(
            f"{path} was written by an earlier version, which names its settings otherwise (accumulate, "
            "lr_per_256): go on with that run in the hapicl that wrote it, or start a new one with another "
            "--out"
        )
    return config


def read_metrics(folder: Path) -> Iterator[dict[str, float]]:
    """Give the lines of a run's metrics.jsonl; a last line cut by a crash is left out.

    Raises:
        UserError: for a file whose numbers have the names of an earlier version.
    """
    path = folder / METRICS
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            values = None
        if isinstance(values, dict):
            if OLD_KEY in values:
                raise UserError(
                    f"{path} was written by an earlier version, whose numbers had other names (instance for "
                    "loss/instance): read it with that version, or train the run again"
                )
            yield values
        else:
            print(f"{path}: a line is cut and left out: {line[:60]}", file=sys.stderr)


def _drop_from(path: Path, step: int) -> None:
    """Keep the metrics of steps before a resume's position."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


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

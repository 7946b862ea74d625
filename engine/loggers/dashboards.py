"""Dashboards that show a run's numbers as they come: one small interface, whatever stands behind it.

A dashboard never holds up or ends a training. Each has a thread of its own that does the talking, so a server
that is slow is not waited for; the first thing that fails there is told once, and the dashboard is given up.
metrics.jsonl in the run folder holds every number in any case.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from ...common.atomic_files import atomic_write
from ...common.errors import UserError

DashboardName = Literal["tensorboard", "wandb", "mlflow"]
LAST_WAIT_SECONDS = 60.0  # for what a dashboard has still to send when the run ends
REMEMBERED = "dashboards.json"  # in the run folder: which run it is there


@dataclass(frozen=True)
class RunFacts:
    """What a dashboard is told of a run when it is opened.

    Attributes:
        folder: of the run; dashboards that write files write them there.
        config: config.json.
        resumed_step: optimiser steps done before this session; above 0 the run of before goes on.
        show: whether the library behind may print.
    """

    folder: Path
    config: Mapping[str, Any]
    resumed_step: int = 0
    show: bool = True

    def remembered(self, name: str) -> dict[str, str]:
        """What this run was called at a dashboard when it was begun; empty where it begins now."""
        if not self.resumed_step:
            return {}
        found = _read(self.folder / REMEMBERED).get(name, {})
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def remember(self, name: str, values: Mapping[str, str]) -> None:
        """Keep what this run is called at a dashboard, for the session that resumes it."""
        kept = {**_read(self.folder / REMEMBERED), name: dict(values)}
        with atomic_write(self.folder / REMEMBERED) as part:
            part.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


class Dashboard(Protocol):
    """One run at one dashboard. Opening it is `Kind(facts)`; all calls come from one thread, in order."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers by name for `step` optimiser steps done."""

    def close(self, *, failed: bool) -> None:
        """Send what waits, and say how the session ended."""


class _Home(NamedTuple):
    """Where a dashboard's class is, and what has to be installed for it."""

    module: str
    kind: str
    library: str
    extra: str | None


DASHBOARDS: dict[str, _Home] = {  # for each `DashboardName`
    "tensorboard": _Home("tensorboard_events", "TensorBoardEvents", "tensorboard", None),
    "wandb": _Home("wandb_run", "WandbRun", "wandb", "wandb"),
    "mlflow": _Home("mlflow_run", "MlflowRun", "mlflow", "mlflow"),
}


class Feed:
    """A dashboard and its thread.

    Args:
        name: for messages.
        kind: opens the dashboard; waited for, so that no worker is forked while a library is being imported.

    Raises:
        UserError: if opening says that the user has to do something first, such as to log in.
    """

    def __init__(self, name: str, kind: Callable[[], Dashboard]) -> None:
        self.name = name
        self._complaint, self._told = "", False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"dashboard-{name}")
        self._dashboard: Dashboard | None = None
        opening = self._thread.submit(kind)
        error = opening.exception()
        if isinstance(error, UserError):
            self._thread.shutdown()
            raise error
        self._look(opening)
        if error is None:
            self._dashboard = opening.result()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Hand numbers over; returns at once."""
        if self._dashboard is not None and not self._complaint:
            self._thread.submit(self._dashboard.record, step, dict(values)).add_done_callback(self._look)

    def close(self, *, failed: bool) -> None:
        """Wait for what is still to be sent, a minute at most."""
        if self._dashboard is not None and not self._complaint:
            closing = self._thread.submit(self._dashboard.close, failed=failed)
            try:
                closing.exception(timeout=LAST_WAIT_SECONDS)
            except FutureTimeout:
                self._complain(f"it has not answered for {LAST_WAIT_SECONDS:.0f} seconds")
            else:
                self._look(closing)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def take_complaint(self) -> str:
        """What went wrong, the first time that it is asked for."""
        if not self._complaint or self._told:
            return ""
        self._told = True
        return self._complaint

    def _look(self, done: Future[Any]) -> None:
        """Note the first failure."""
        error = None if done.cancelled() else done.exception()
        if error is not None:
            words = str(error).strip().splitlines()
            self._complain(f"{type(error).__name__}{': ' + words[0] if words else ''}")

    def _complain(self, reason: str) -> None:
        self._complaint = self._complaint or (
            f"the dashboard {self.name} is given up for this session ({reason}); the training goes on, and "
            "metrics.jsonl has every number"
        )


def open_feed(name: str, facts: RunFacts) -> Feed:
    """Open a dashboard by its name.

    Raises:
        UserError: if its library is not installed, or wants something of the user first.
    """
    check_installed([name])
    home = DASHBOARDS[name]
    kind = getattr(importlib.import_module(f".{home.module}", __package__), home.kind)
    return Feed(name, lambda: kind(facts))


def check_installed(names: Sequence[str]) -> None:
    """Refuse dashboards whose library is missing; imports none.

    Raises:
        UserError: says what to install.
    """
    for name in names:
        home = DASHBOARDS[name]
        if importlib.util.find_spec(home.library) is None:
            raise UserError(f"--logger {name} needs {home.library}: pip install 'hapicl[{home.extra}]'")


def _read(path: Path) -> dict[str, Any]:
    """What is remembered; nothing where there is no file, or it was edited into something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

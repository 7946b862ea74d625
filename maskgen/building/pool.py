"""Running tasks in worker processes, and living through the death of a worker.

A worker that the kernel kills takes the whole joblib call with it. The images that were under way then are
run again one by one; an image that kills its worker twice becomes a row that says so, and the build goes on.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import joblib
from joblib.externals.loky import cpu_count, get_reusable_executor

from ...common.errors import UserError
from ...data.masks.writer import MaskRow
from .plan import Task
from .settings import BuildSettings
from .worker import RowMaker, TaskResult, make_rows

# so many images in a row that each kill their worker: then it is not the images
_TOO_MANY_DEATHS = 5


def default_workers() -> int:
    """Cores this process may use: respects CPU affinity and control groups."""
    return int(cpu_count())


def follow_parent(parent: int) -> None:
    """Prepare a worker: Ctrl-C is the parent's business, and a killed parent takes its workers with it.

    (An orphaned loky worker would wait for five minutes, with its memory.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@dataclass
class Runner:
    """Runs tasks for one build.

    Attributes:
        root: the image folder.
        maker: how to make masks.
        settings: where workers run, and how many.
    """

    root: str
    maker: RowMaker
    settings: BuildSettings

    @property
    def backend(self) -> str:
        """Where workers run: "loky" (processes here), "dask" or "ray" (a cluster, through joblib)."""
        return self.settings.backend

    @property
    def workers(self) -> int:
        """Processes for loky, or for a cluster started here."""
        return self.settings.workers or default_workers()

    @contextmanager
    def started(self) -> Iterator[None]:
        """Hold the worker processes; on leaving, however, they end."""
        if self.backend == "loky":
            with warnings.catch_warnings():
                # that a worker died is handled here; that one is stopped on the way out is meant
                warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
                try:
                    yield
                finally:
                    get_reusable_executor().shutdown(wait=True, kill_workers=True)
        else:
            with _cluster(self.backend, self.workers, self.settings.scheduler):
                yield

    def results(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Run tasks, yielding results as they come; a task may come back in pieces.

        Raises:
            UserError: if workers die whatever they are given.
        """
        waiting = dict.fromkeys(tasks)
        while waiting:
            under_way: dict[Task, None] = {}
            try:
                for result in self._stream(list(waiting), under_way):
                    del waiting[result.task], under_way[result.task]
                    yield result
            except _worker_deaths(self.backend):
                for task in under_way:
                    del waiting[task]
                yield from self._one_by_one(list(under_way))

    def _one_by_one(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Find the images that kill their worker: run each alone, twice if need be."""
        waiting = dict.fromkeys(Task(task.part, (path,)) for task in tasks for path in task.paths)
        deaths = 0
        while waiting:
            under_way: dict[Task, None] = {}
            try:
                for result in self._stream(list(waiting), under_way):
                    del waiting[result.task], under_way[result.task]
                    yield result
            except _worker_deaths(self.backend):
                for task in under_way:
                    del waiting[task]
                    result, killed = self._alone(task)
                    deaths = deaths + 1 if killed else 0
                    if deaths == _TOO_MANY_DEATHS:
                        raise UserError(
                            f"{deaths} workers in a row died (the last on {task.paths[0]}); if memory is "
                            "short, use fewer --workers"
                        ) from None
                    yield result

    def _alone(self, task: Task) -> tuple[TaskResult, bool]:
        """Run one image with nothing beside it; after a second death its row says why."""
        for _ in range(2):
            try:
                return next(self._stream([task], {})), False
            except _worker_deaths(self.backend):
                continue
        reason = "its worker process died twice on it alone (a crash in the decoder, or too little memory)"
        return TaskResult(task, [MaskRow(path=task.paths[0], reason=reason)], 0.0), True

    def _stream(self, tasks: Sequence[Task], under_way: dict[Task, None]) -> Iterator[TaskResult]:
        """One joblib call; `under_way` gains each task as it is handed out."""

        def calls() -> Iterator[Any]:
            for task in tasks:
                under_way[task] = None
                yield joblib.delayed(make_rows)(self.root, task, self.maker)

        if self.backend == "ray":  # its joblib backend returns lists only
            for start in range(0, len(tasks), 4 * self.workers):
                some = tasks[start : start + 4 * self.workers]
                under_way.update(dict.fromkeys(some))
                yield from joblib.Parallel(n_jobs=-1, batch_size=1)(
                    joblib.delayed(make_rows)(self.root, task, self.maker) for task in some
                )
            return
        with self._configured():
            # joblib runs a single worker in this process, where a crash would be the end of the build: so for
            # one worker a pool of two is given one task at a time
            alone = self.backend == "loky" and self.workers == 1
            parallel = joblib.Parallel(
                n_jobs=max(2, self.workers) if self.backend == "loky" else -1,
                pre_dispatch=1 if alone else "2*n_jobs",
                batch_size=1,
                return_as="generator_unordered",
            )
            yield from parallel(calls())

    def _configured(self) -> AbstractContextManager[Any]:
        """The settings of a joblib call here; those of a cluster hold for as long as it is connected."""
        if self.backend != "loky":
            return nullcontext()
        settings: AbstractContextManager[Any] = joblib.parallel_config(
            backend="loky", inner_max_num_threads=1, initializer=follow_parent, initargs=(os.getpid(),)
        )
        return settings


def _worker_deaths(backend: str) -> tuple[type[BaseException], ...]:
    """The exceptions by which a backend says that a worker died."""
    if backend == "dask":
        from distributed.scheduler import KilledWorker

        return (BrokenProcessPool, KilledWorker)
    if backend == "ray":
        from ray.exceptions import WorkerCrashedError

        return (BrokenProcessPool, WorkerCrashedError)
    return (BrokenProcessPool,)


@contextmanager
def _cluster(backend: str, workers: int, scheduler: str | None) -> Iterator[None]:
    """Connect joblib to a running cluster, or to one of `workers` processes started here."""
    start: Callable[[int, str | None], AbstractContextManager[Any]] = _dask if backend == "dask" else _ray
    with start(workers, scheduler) as options, joblib.parallel_config(backend=backend, **options):
        yield


@contextmanager
def _dask(workers: int, scheduler: str | None) -> Iterator[dict[str, Any]]:
    """A client of a running scheduler, or of a cluster on this machine."""
    distributed = _import("distributed", "dask")
    if scheduler is None:
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield {"client": client}
        return
    try:
        client = distributed.Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise UserError(f"no dask scheduler answers at {scheduler}: {error}") from error
    with client:
        yield {"client": client}


@contextmanager
def _ray(workers: int, scheduler: str | None) -> Iterator[dict[str, Any]]:
    """A running ray cluster, or one on this machine."""
    ray, ray_joblib = _import("ray", "ray"), _import("ray.util.joblib", "ray")
    try:
        ray.init(address=scheduler, num_cpus=None if scheduler else workers, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no ray cluster answers at {scheduler}: {error}") from error
    ray_joblib.register_ray()
    try:
        yield {}
    finally:
        ray.shutdown()


def _import(module: str, extra: str) -> Any:
    """A module of an extra.

    Raises:
        UserError: if the extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--backend {extra} needs {extra}: pip install 'hapicl[{extra}]'") from error

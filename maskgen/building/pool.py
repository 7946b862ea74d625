"""Running tasks in worker processes, and living through the death of a worker.

A worker that the kernel kills takes the whole joblib call with it. The images that were under way then are
run again one by one; an image that kills its worker twice becomes a row that says so, and the build goes on.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import joblib

from ...common.errors import UserError
from ...data.build_workers import default_workers, local_workers, run_in_workers
from ...data.images.store import OriginalImages
from ...data.masks.writer import MaskRow
from .plan import Task
from .settings import BuildSettings
from .worker import RowMaker, TaskResult, make_rows

# so many images in a row that each kill their worker: then it is not the images
_TOO_MANY_DEATHS = 5
FIRST_WORKER_SECONDS = 20.0  # for a cluster without workers to start one
WATCH_SECONDS = 2.0  # between two looks whether a cluster has workers
logger = logging.getLogger("hapicl.maskgen")


@dataclass
class Runner:
    """Runs tasks for one build.

    Attributes:
        images: the folder, archives or store that the images are in.
        maker: how to make masks.
        settings: where workers run, and how many.
    """

    images: OriginalImages
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

    def started(self) -> AbstractContextManager[None]:
        """Hold the worker processes; on leaving, however, they end."""
        if self.backend == "loky":
            return local_workers()
        return _cluster(self.backend, self.workers, self.settings.scheduler)

    def results(self, tasks: Sequence[Task]) -> Generator[TaskResult, None, None]:
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
                yield joblib.delayed(make_rows)(self.images, task, self.maker)

        if self.backend == "ray":  # its joblib backend returns lists only
            workers = _ray_workers()
            for start in range(0, len(tasks), 4 * workers):
                some = tasks[start : start + 4 * workers]
                under_way.update(dict.fromkeys(some))
                yield from joblib.Parallel(n_jobs=workers, batch_size=1)(
                    joblib.delayed(make_rows)(self.images, task, self.maker) for task in some
                )
            return
        if self.backend == "dask":  # so many are under way as the cluster has threads, twice
            yield from joblib.Parallel(n_jobs=-1, batch_size=1, return_as="generator_unordered")(calls())
            return
        # joblib runs a single worker in this process, where a crash would be the end of the build: so for one
        # worker a pool of two is given one task at a time
        ahead = 1 if self.workers == 1 else "2*n_jobs"
        yield from run_in_workers(calls(), workers=max(2, self.workers), pre_dispatch=ahead)


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
        if backend == "dask":
            _never_in_this_process()
        yield


def _never_in_this_process() -> None:
    """Let joblib hand the work to the cluster too where that has one thread.

    By joblib's rule a single worker is this process: the work would run here, whatever the cluster is for,
    and a crash in a decoder would be the end of the build.
    """
    backend = joblib.parallel.get_active_backend()[0]
    threads = backend.effective_n_jobs
    backend.effective_n_jobs = lambda n_jobs: max(2, threads(n_jobs))


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
        if not client.ncores():
            try:  # a task makes a cluster that grows by need start a worker
                client.submit(os.getpid).result(timeout=FIRST_WORKER_SECONDS)
            except TimeoutError as error:
                raise UserError(f"no workers at {scheduler}; start `dask worker {scheduler}`") from error
        with _watched(client, scheduler):
            yield {"client": client}


@contextmanager
def _watched(client: Any, scheduler: str) -> Iterator[None]:
    """Say within seconds that a cluster has lost its last worker, and that it has one again."""
    over = threading.Event()

    def watch() -> None:
        empty = False
        while not over.wait(WATCH_SECONDS):
            try:
                now_empty = not client.ncores()
            except (OSError, RuntimeError, ValueError):  # the client is closing, or has lost its scheduler
                continue
            if now_empty and not empty:
                logger.warning(
                    "no worker is left at %s: waiting for one (`dask worker %s`); Ctrl-C keeps what is done",
                    scheduler,
                    scheduler,
                )
            elif empty and not now_empty:
                logger.warning("a worker has come to %s: going on", scheduler)
            empty = now_empty

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _ray(workers: int, scheduler: str | None) -> Iterator[dict[str, Any]]:
    """A running ray cluster, or one on this machine."""
    ray, ray_joblib = _import("ray", "ray"), _import("ray.util.joblib", "ray")
    try:
        ray.init(
            address=scheduler,
            num_cpus=None if scheduler else workers,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no ray cluster answers at {scheduler}: {error}") from error
    ray_joblib.register_ray()
    # it warns of an argument that joblib gives it at every build
    logging.getLogger("ray.util.multiprocessing.pool").setLevel(logging.ERROR)
    try:
        yield {}
    finally:
        ray.shutdown()


def _ray_workers() -> int:
    """Tasks that a ray cluster runs at a time; at least 2, as `_never_in_this_process` says."""
    return max(2, int(_import("ray", "ray").cluster_resources().get("CPU", 1)))


def _import(module: str, extra: str) -> Any:
    """A module of an extra.

    Raises:
        UserError: if the extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--backend {extra} needs {extra}: pip install 'hapicl[{extra}]'") from error

"""Worker processes of this machine for long builds (masks, packs): none outlives its build, none speaks.

They are joblib's, started afresh by `exec`. Left to itself joblib warns of every build that is stopped, a
worker that Ctrl-C reaches while it imports dies with a traceback, and after a `kill -9` of the build its
workers wait for five minutes, with their memory.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import joblib
from joblib.externals.loky import cpu_count, get_reusable_executor

from ..common.errors import UserError
from ..common.system.processes import parent_lives

# what joblib says at a build that is stopped; the build says it itself
STOPPED = r"A worker stopped while some jobs|\d+ tasks (which were still|have been)"
# what a process of joblib's says that clears away after a build killed by `kill -9`
CLEARED_AWAY = "ignore:resource_tracker:UserWarning"
PARENT_SECONDS = 1.0  # between two looks whether the parent lives


def default_workers() -> int:
    """Cores this process may use: respects CPU affinity and control groups."""
    return int(cpu_count())


@contextmanager
def local_workers() -> Iterator[None]:
    """Hold the processes of `run_in_workers`; on leaving, however, they end."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", STOPPED, UserWarning)
        try:
            yield
        finally:
            get_reusable_executor().shutdown(wait=True, kill_workers=True)


def run_in_workers(
    calls: Iterable[Any], *, workers: int, pre_dispatch: int | str = "2*n_jobs"
) -> Generator[Any, None, None]:
    """Run calls, yielding results as they come. Close the iterator before `local_workers` is left.

    Args:
        calls: of `joblib.delayed`.
        workers: processes, at least 2: joblib runs a single one in this process.
        pre_dispatch: calls that are handed out ahead.

    Raises:
        BrokenProcessPool: if a worker dies.
        UserError: if this Python can start no process of its own, such as one that the user may not read.
    """
    with joblib.parallel_config(
        backend="loky", inner_max_num_threads=1, initializer=_follow_parent, initargs=(os.getpid(),)
    ):
        parallel = joblib.Parallel(
            n_jobs=workers, pre_dispatch=pre_dispatch, batch_size=1, return_as="generator_unordered"
        )
        try:
            with _undisturbed_birth():
                results = parallel(calls)  # starts the workers
        except BrokenPipeError as error:  # taken for a closed standard output, it would end without a word
            raise UserError(
                f"no worker process can be started: {sys.executable} died at once; check that this user may "
                "read and run it with its libraries"
            ) from error
        yield from results


@contextmanager
def _undisturbed_birth() -> Iterator[None]:
    """Let processes that start here ignore Ctrl-C from birth; this process takes one a moment later."""
    resource_tracker.ensure_running()  # else it starts inside, and Python 3.11 unblocks Ctrl-C with it
    masks = hasattr(signal, "pthread_sigmask")  # Windows has none
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    filters = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = CLEARED_AWAY if filters is None else f"{filters},{CLEARED_AWAY}"
    try:
        yield
    finally:
        if filters is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = filters
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _follow_parent(parent: int) -> None:
    """Prepare a worker: Ctrl-C is the parent's business, and a killed parent takes its workers with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """End this process when its parent is gone."""
    while parent_lives(parent):
        time.sleep(PARENT_SECONDS)
    os._exit(1)

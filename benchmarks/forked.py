"""Commands of hapicl in forked children of one process that has imported everything: a start costs nothing.

The parent must never have started a thread (OMP_NUM_THREADS=1, no backward pass): a fork takes none along.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing.util
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

LIMIT_SECONDS = 240  # a command that takes longer hangs
POLL_SECONDS = 0.002
AGENT_SECONDS = 30  # torchrun's patience
EXIT_STOPPED = 75


def hapicl(arguments: Sequence[str]) -> Callable[[], None]:
    """The command line as a function for `start`."""

    def call() -> None:
        from hapicl import cli

        sys.argv = ["hapicl", *arguments]
        cli.main()

    return call


def import_all(names: Sequence[str]) -> None:
    """Import modules that children will need; those that only their own program can import are left out."""
    for name in names:
        if name not in sys.modules and "__main__" not in name and "__mp_main__" not in name:
            with suppress(ImportError):
                importlib.import_module(name)
    threads = threading.active_count()
    assert threads == 1, f"an import has started {threads - 1} threads: a fork would lose them"


def start(call: Callable[[], object], errors: Path, *, environment: Mapping[str, str] | None = None) -> int:
    """Run a function in a forked child, as a program of its own.

    Args:
        call: its return is exit code 0, `SystemExit` its own, another exception a traceback and 1.
        errors: the file that gains what it writes to stderr.
        environment: variables to set.

    Returns:
        The process's number, for `finish`.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        _forget_exit_functions()
        os.setsid()
        os.environ.update(environment or {})
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _exit_code(call)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _forget_exit_functions() -> None:
    """Drop what the parent clears away in the end, but for what minds whose process it is in."""
    atexit._clear()
    atexit.register(multiprocessing.util._exit_function)


def _exit_code(call: Callable[[], object]) -> int:
    try:
        call()
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
            return 1
        return left.code or 0
    except BaseException:  # noqa: BLE001 - the traceback that a user would see
        traceback.print_exc()
        return 1
    return 0


def finish(process: int, *, seconds: float = LIMIT_SECONDS) -> int | None:
    """Wait for a child; gives its exit code, minus the signal that ended it, or None if it hung."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def finish_together(processes: Sequence[int]) -> list[int | None]:
    """`finish` all as torchrun does: when one has failed the others get SIGTERM, later SIGKILL."""
    codes: dict[int, int | None] = {}
    waiting, end = list(processes), time.monotonic() + LIMIT_SECONDS
    while waiting and time.monotonic() < end:
        for process in [process for process in waiting if has_ended(process)]:
            codes[process] = finish(process)
            waiting.remove(process)
            if codes[process] not in {0, EXIT_STOPPED} and waiting:
                end = min(end, time.monotonic() + AGENT_SECONDS)
                for other in waiting:
                    os.kill(other, signal.SIGTERM)
        time.sleep(POLL_SECONDS)
    codes |= {process: finish(process, seconds=0) for process in waiting}
    return [codes[process] for process in processes]


def run(call: Callable[[], object], errors: Path) -> int | None:
    """`start` and `finish`."""
    return finish(start(call, errors))


def has_ended(process: int) -> bool:
    """Whether a child has ended; it is still to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(process: int, ready: Callable[[], bool], seconds: float) -> None:
    """Return when it is `ready`, when the child has ended, or after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not ready() and not has_ended(process):
        time.sleep(POLL_SECONDS)


def kill_worker(process: int, draw: random.Random) -> bool:
    """Kill one process that a child has started; False if there is none."""
    try:
        # loky and multiprocessing keep a process for their resources beside the workers
        found = [
            other
            for other in psutil.Process(process).children(recursive=True)
            if "resource_tracker" not in " ".join(other.cmdline())
        ]
        if not found:
            return False
        draw.choice(found).kill()
    except psutil.Error:
        return False
    return True

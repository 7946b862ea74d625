"""Workers of builds: the screen stays quiet whatever ends them."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import joblib
import psutil
import pytest

from hapicl.common.errors import UserError
from hapicl.data.build_workers import local_workers, run_in_workers

PROGRAM = """
import sys, time
import joblib
from hapicl.data.build_workers import local_workers, run_in_workers
with local_workers():
    calls = (joblib.delayed(time.sleep)(float(sys.argv[1])) for _ in range(8))
    for _ in run_in_workers(calls, workers=2):
        print("done", flush=True)
"""


def start(tmp_path, seconds):
    command = [sys.executable, "-c", PROGRAM, str(seconds)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with open(tmp_path / "done", "w") as done, open(tmp_path / "errors", "w") as errors:
        return subprocess.Popen(command, stdout=done, stderr=errors, env=environment)


def workers_of(process):
    try:
        found = psutil.Process(process.pid).children(recursive=True)
        return [other for other in found if "popen_loky" in " ".join(other.cmdline())]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_ctrl_c_killed_workers_that_were_starting_with_a_traceback(tmp_path):
    """A terminal sends it to every process of the command, also to those that still import joblib."""
    process, times = start(tmp_path, 0.0), 0
    while process.poll() is None:
        for worker in workers_of(process):
            worker.send_signal(signal.SIGINT)
            times += 1
        time.sleep(0.01)
    assert times > 5
    assert (tmp_path / "done").read_text() == "done\n" * 8
    assert (tmp_path / "errors").read_text() == ""


@pytest.mark.slow
def test_a_killed_build_left_warnings_of_its_helpers_on_the_screen(tmp_path):
    process = start(tmp_path, 0.2)
    while not (tmp_path / "done").read_text():
        time.sleep(0.05)
    helpers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(helpers, timeout=30)
    assert alive == []
    assert len(helpers) >= 3
    assert (tmp_path / "errors").read_text() == ""


def test_a_build_that_stops_early_gave_a_warning_of_joblibs():
    """Warnings are errors here."""
    with local_workers():
        calls = (joblib.delayed(pow)(number, 2) for number in range(50))
        with closing(run_in_workers(calls, workers=2)) as results:
            assert next(results) in {number**2 for number in range(50)}


def test_a_python_that_starts_no_process_ended_the_build_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a broken pipe is taken for a closed standard output: exit code 1 and silence
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(joblib.Parallel, "__call__", broken)
    with pytest.raises(UserError, match="no worker process can be started"):
        next(run_in_workers([joblib.delayed(abs)(-1)], workers=2))

"""Signals outside of the training loop."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hapicl.common.atomic_files import atomic_write
from hapicl.engine import stop
from hapicl.engine.stop import (
    EXIT_STOPPED,
    Stopped,
    StopRequest,
    exit_when_stopped,
    raise_on_signals,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_during_start_up_ends_with_code_75_and_nothing_half_written(tmp_path, number):
    """The process died at once with the signal's own code, and left files in the making."""
    before, said = signal.getsignal(number), []

    def work():
        with exit_when_stopped(said.append), atomic_write(tmp_path / "a") as part:
            part.write_text("half")
            os.kill(os.getpid(), number)
            pytest.fail("went on")

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == EXIT_STOPPED
    assert said[0].startswith(f"stopped by {number.name} before training began")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == before


def test_a_second_sigterm_does_not_disturb_the_clearing_up():
    cleared = []

    def work():
        with raise_on_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                cleared.append(True)

    with pytest.raises(Stopped):
        work()
    assert cleared == [True]


def test_a_signal_in_a_destructor_is_raised_after_it(capsys):
    """Python drops what a destructor raises, with a traceback on the screen, and goes on."""

    class Signals:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    def work():
        with raise_on_signals():
            Signals()
            time.sleep(5)

    start = time.monotonic()
    with pytest.raises(Stopped):
        work()
    assert time.monotonic() - start < 4
    assert capsys.readouterr().err == ""


def test_a_signal_during_an_import_is_raised_after_it(tmp_path, monkeypatch):
    """numpy takes any error during its import for a missing part, and fails later with a traceback."""
    (tmp_path / "swallows_all.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException:\n    whole = False\n"
        "else:\n    whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def work():
        with raise_on_signals():
            importlib.import_module("swallows_all")
            time.sleep(5)

    with pytest.raises(Stopped):
        work()
    assert sys.modules.pop("swallows_all").whole


def test_the_loop_knows_of_a_signal_that_came_just_before_it():
    def work():
        with raise_on_signals(), StopRequest() as first:
            assert first.name is None
            stop._missed.append("SIGTERM")
            with StopRequest() as second:
                assert second.name == "SIGTERM"

    work()
    assert stop._missed == []


def test_a_thread_beside_the_main_one_may_use_it():
    done = []

    def work():
        with raise_on_signals():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_command_line_clears_up_on_signals(tmp_path, name):
    program = (
        "import os, signal, sys, pathlib\n"
        "from hapicl import cli\n"
        "from hapicl.common.atomic_files import atomic_write\n"
        "def main(**_):\n"
        "    with atomic_write(pathlib.Path(sys.argv[1])) as part:\n"
        "        part.write_text('half')\n"
        "        os.kill(os.getpid(), signal.Signals[sys.argv[2]])\n"
        "cli.command_line.main = main\n"
        "cli.main()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(tmp_path / "a"), name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (128 + signal.Signals[name], "")
    assert done.stderr == f"stopped by {name}; give the same command again to go on\n"
    assert list(tmp_path.iterdir()) == []

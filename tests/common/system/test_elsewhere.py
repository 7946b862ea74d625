"""The parts of the package that ask the system, on systems that lack what they ask: macOS, Windows."""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from hapicl.common.atomic_files import atomic_write
from hapicl.common.system import processes, processor
from hapicl.data import path_keys
from hapicl.data.path_keys import is_safe_key
from hapicl.engine import stop

# names that Windows's Python lacks, or that are of no use there
MISSING = {
    "signal": ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCHLD", "SIGALRM", "setitimer", "alarm", "pthread_sigmask"),
    "os": (
        "sched_getaffinity",
        "getloadavg",
        "register_at_fork",
        "O_DIRECTORY",
        "O_CLOEXEC",
        "pread",
        "pwrite",
    ),
}
BLOCKED = ("resource", "fcntl")
# what we use imports some of these names itself, on Linux: it comes first, and ours after it
IMPORT_ALL = f"""
import importlib, os, pathlib, signal, sys
for name in ("torch.utils.tensorboard", "torchvision", "timm", "joblib", "h5py", "cv2",
             "skimage.segmentation", "sklearn.linear_model", "rich.progress", "numba", "matplotlib.figure",
             "pydantic", "jinja2"):
    importlib.import_module(name)
for module, names in {MISSING!r}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
for name in {BLOCKED!r}:
    sys.modules[name] = None
import hapicl
root = pathlib.Path(hapicl.__file__).parent
rooms = ("common", "data", "engine", "models", "maskgen", "pretrain", "evaluate", "demo")
for file in sorted(file for room in rooms for file in (root / room).rglob("*.py")):
    parts = file.relative_to(root).with_suffix("").parts
    importlib.import_module(".".join(("hapicl", *parts)).removesuffix(".__init__"))
from hapicl import cli
from hapicl.common.locks import hold_folder
from hapicl.common.system.processes import peak_memory
from hapicl.engine.stop import SIGNALS
with hold_folder(pathlib.Path(sys.argv[1]), advice="wait"):
    print(peak_memory() > 2**20, [number.name for number in SIGNALS])
"""


def test_every_module_is_imported_without_what_windows_lacks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True ['SIGTERM', 'SIGINT']\n"
    assert "no locks on this system" in done.stderr


@pytest.fixture
def no_alarm(monkeypatch):
    """The module that takes signals, as it is where there are only those that Windows has."""
    for name in MISSING["signal"]:
        monkeypatch.delattr(signal, name)
    found = importlib.util.spec_from_file_location("stop_elsewhere", stop.__file__)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_a_signal_in_a_destructor_is_raised_after_it_without_an_alarm(no_alarm):
    class Signals:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    def work():
        with no_alarm.raise_on_signals():
            Signals()
            for _ in range(250):
                time.sleep(0.02)

    before, start = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(no_alarm.Stopped, match="SIGINT"):
        work()
    assert time.monotonic() - start < 4
    assert signal.getsignal(signal.SIGTERM) == before
    assert not any(
        isinstance(thread, threading.Timer) and thread.is_alive() for thread in threading.enumerate()
    )


def test_a_stop_is_asked_for_without_an_alarm(no_alarm):
    with no_alarm.StopRequest() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.name == "SIGTERM"


def test_the_usual_signals_are_taken_here():
    assert stop.SIGNALS == (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    assert stop.ALARM == signal.SIGALRM


def test_a_file_is_written_where_a_folder_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECTORY")

    def open_file(path, *arguments, **options):
        if pathlib.Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    real = os.open
    monkeypatch.setattr(os, "open", open_file)
    with atomic_write(tmp_path / "file") as part:
        part.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_key_that_would_leave_the_folder_on_windows_is_unsafe_there(monkeypatch):
    keys = [b"a/b.jpg", b"C:/b.jpg", b"..\\b.jpg", b"a\\b.jpg", b"/b.jpg", b"a\0"]
    assert [is_safe_key(key) for key in keys] == [True, True, True, True, False, False]
    monkeypatch.setattr(path_keys, "_FORBIDDEN", re.compile(rb"[\0:\\]"))
    assert [is_safe_key(key) for key in keys] == [True, False, False, False, False, False]


def test_all_cores_count_where_no_affinity_is_known(monkeypatch):
    assert processor.usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert processor.usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processor.usable_cores() == 1


def test_a_processor_of_which_nothing_is_known_imitates_bf16(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert not processor.computes_bf16()
    (tmp_path / "cpuinfo").write_text("flags : fpu avx512_bf16\n")
    assert processor.computes_bf16()


def test_memory_is_counted_in_bytes_on_every_system(monkeypatch):
    on_linux = processes.peak_memory()
    assert 0.5 < on_linux / psutil.Process().memory_info().rss < 20
    monkeypatch.setitem(sys.modules, "resource", None)
    assert 0.02 < processes.peak_memory() / on_linux <= 2
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")  # whose kernel counts in bytes
    assert processes.peak_memory() == pytest.approx(on_linux / 1024, rel=0.5)


def test_a_parent_that_is_gone_is_known_by_its_number_on_windows(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert processes.parent_lives(os.getppid())
    assert not processes.parent_lives(child.pid)
    monkeypatch.setattr(processes.os, "getppid", lambda: child.pid)  # which stays as it was there
    with monkeypatch.context() as on_windows:
        on_windows.setattr(processes.os, "name", "nt")
        alive = [processes.parent_lives(number) for number in (child.pid, os.getpid())]
    assert alive == [False, True]

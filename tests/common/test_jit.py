"""Kernels: compiled once, announced once, kept on disk."""

import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = """
from hapicl.common.jit import is_compiled
from kernels import double
print(double(2.0), is_compiled(double))
"""
KERNELS = """
from hapicl.common.jit import jit

@jit("float64(float64)")
def double(value):
    return 2 * value

@jit("float64(float64)")
def half(value):
    return value / 2
"""


def run(folder, *, by=(), **environment):
    """Start a process that uses a kernel; what it printed and said. `by` is a command that starts it."""
    paths = os.pathsep.join([str(folder), *sys.path])
    ours = ("HAPICL_COMPILING_ANNOUNCED", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    environment = {"NUMBA_CACHE_DIR": str(folder / "cache")} | environment
    done = subprocess.run(
        [*by, sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env=kept | {"PYTHONPATH": paths} | {name: value for name, value in environment.items() if value},
    )
    return done.stdout.strip(), done.stderr.strip()


def test_a_standstill_of_half_a_minute_was_not_announced(tmp_path):
    (tmp_path / "kernels.py").write_text(KERNELS)
    out, said = run(tmp_path)
    assert out == "4.0 True"
    assert said == "compiling kernels, once: up to half a minute"  # one line, for two kernels
    assert run(tmp_path) == ("4.0 True", "")  # kept
    (tmp_path / "kernels.py").write_text(KERNELS + "\n# changed\n")
    assert run(tmp_path, HAPICL_COMPILING_ANNOUNCED="1") == ("4.0 True", "")  # a worker says nothing


def test_an_install_that_may_not_be_written_keeps_its_kernels_with_the_user(tmp_path):
    by = ()
    if os.geteuid() == 0:  # whom no permission keeps out, unless it gives that right up
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and there is no setpriv")
        by = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    install, home = tmp_path / "install", tmp_path / "home"
    for folder in (install, home):
        folder.mkdir()
    (install / "kernels.py").write_text(KERNELS)
    install.chmod(0o555)
    said = "compiling kernels, once: up to half a minute"
    places = {"NUMBA_CACHE_DIR": "", "HOME": str(home)}
    assert run(install, by=by, **places) == ("4.0 True", said)
    assert run(install, by=by, **places) == ("4.0 True", "")
    assert [path.name for path in install.iterdir()] == ["kernels.py"]
    shutil.rmtree(home)
    home.mkdir(0o555)
    assert run(install, by=by, **places) == ("4.0 True", said)  # kept nowhere: every process compiles
    install.chmod(0o755)

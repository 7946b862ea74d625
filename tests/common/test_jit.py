"""Kernels: compiled once, announced once, kept on disk."""

import os
import subprocess
import sys

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


def run(folder, **environment):
    """Start a process that uses a kernel; what it printed and said."""
    paths = os.pathsep.join([str(folder), *sys.path])
    kept = {name: value for name, value in os.environ.items() if name != "HAPICL_COMPILING_ANNOUNCED"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env=kept | {"PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(folder / "cache")} | environment,
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

"""The processor: how many cores this process may use, and what they can compute."""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux alone has it


def usable_cores() -> int:
    """Cores this process may use: Linux knows an affinity; elsewhere all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computes_bf16() -> bool:
    """Whether the processor computes in bf16, which halves the time of a step, or only imitates it.

    Known on Linux; elsewhere the answer is no, which costs time and no accuracy.
    """
    flags = CPUINFO.read_text() if CPUINFO.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags

"""Processes: whether a parent lives, how much memory this one has used."""

from __future__ import annotations

import os
import sys


def parent_lives(parent: int) -> bool:
    """Whether this process's parent still runs.

    Args:
        parent: its number, as `os.getppid()` gave it when this process began.
    """
    if os.name == "nt":  # there the number stays when the parent is gone (not run)
        import psutil

        return psutil.pid_exists(parent)
    return os.getppid() == parent


def peak_memory() -> int:
    """Largest memory of this process so far, bytes."""
    try:
        import resource
    except ImportError:  # Windows (not run)
        import psutil

        used = psutil.Process().memory_info()
        return int(getattr(used, "peak_wset", used.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB, macOS in bytes
    return peak if sys.platform == "darwin" else peak * 1024

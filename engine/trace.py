"""A torch.profiler trace of a few steps, for `--profile N`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .distributed import World

WARM_UP_STEPS = 5


@contextmanager
def tracer(
    steps: int, folder: Path | None, world: World, *, left: int, info: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Give a function to call after every step; writes `trace.json` (for Perfetto) to the folder.

    Args:
        steps: steps to trace after `WARM_UP_STEPS`, or after fewer where a session is short; 0: none.
        folder: the run folder.
        world: only the first process traces.
        left: steps of this session.
        info: says it where fewer steps are traced than were asked for.
    """
    if steps == 0 or folder is None or not world.first:
        yield lambda: None
        return
    if left < 2:  # the first step of a profiler is its warm-up
        info(
            f"warning: --profile {steps} traces nothing: of this session's steps ({left}) the first warms up"
        )
        yield lambda: None
        return
    if left - 1 < steps:
        info(
            f"warning: --profile {steps} traces {left - 1} of this session's {left} steps: the first warms up"
        )
        steps = left - 1
    wait = min(WARM_UP_STEPS, left - steps) - 1
    activities = [torch.profiler.ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    folder.mkdir(parents=True, exist_ok=True)
    # torch's tracer writes of its start, and of a GPU that is not there, as of an error
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=wait, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(folder / "trace.json")),
        acc_events=True,  # there is one cycle only; without this torch 2.11 warns of those it would clear
    ) as profiler:
        yield profiler.step

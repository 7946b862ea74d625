"""What a worker process of a loader does about signals, errors and threads: in training and in evaluation."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from ...common.system.processes import parent_lives

# a worker outlives SIGTERM by so much: longer than any step, or the step in progress dies with its worker
# (torch ends workers whose trainer is gone)
GRACE_SECONDS = 600
LOST_SECONDS = 0.5  # a killed trainer's connections end a moment before it does
_STOPPING = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)}


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Give a loader's iterator, whose workers hold back signals until `prepare_worker` has seen to them.

    In a training they inherit handlers that would end them, and the training with them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(_: int) -> None:
    """One thread a worker: more would fight over the cores. Signals are the trainer's business."""
    # a scheduler or torchrun sends them to every process of a run; the trainer needs its workers until the
    # step in progress is done, and ends them itself
    for name in ("SIGINT", "SIGUSR1", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # Windows ends a process without asking it
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    sys.excepthook = partial(_tell_unless_orphaned, os.getppid())
    if cv2.getNumThreads() != 1:  # a forked worker has it from its parent and must not touch its thread pool
        cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _tell_unless_orphaned(
    parent: int, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Keep from the screen that a killed trainer does not take what the worker was just sending."""
    lost = isinstance(error, ConnectionError | EOFError)
    if lost:
        time.sleep(LOST_SECONDS)
    if not lost or parent_lives(parent):
        sys.__excepthook__(kind, error, trace)

"""What cells cost: the memory one holds, and how long the next ones will take, told from those before."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import psutil
import torch

from ...common.system.devices import peak_bytes

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Pace:
    """What measured cells took: (initialisation, labelled images, seconds)."""

    seen: list[tuple[str, int, float]] = field(default_factory=list)

    def add(self, initialisation: str, images: int, seconds: float) -> None:
        """Take in a cell that ran from its start to its end."""
        self.seen.append((initialisation, images, seconds))

    def seconds(self, initialisation: str, images: int) -> float | None:
        """What a cell will take; None before anything was measured.

        Cells of the same initialisation and number of images tell most, then those of that number of images,
        then a straight line through what other numbers took.
        """
        same = [took for name, count, took in self.seen if (name, count) == (initialisation, images)]
        alike = same or [took for _, count, took in self.seen if count == images]
        if alike:
            return statistics.fmean(alike)
        if not self.seen:
            return None
        counts, seconds = [row[1] for row in self.seen], [row[2] for row in self.seen]
        if len(set(counts)) == 1:
            return statistics.fmean(seconds)
        slope, base = np.polyfit(counts, seconds, 1)
        return max(float(base + slope * images), min(seconds))

    def total(self, cells: Sequence[tuple[str, int]]) -> float | None:
        """Seconds of several cells, (initialisation, images) each."""
        each = [self.seconds(*cell) for cell in cells]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) if len(known) == len(each) else None

    def fitting(self, cells: Sequence[tuple[str, int]], left: float) -> int:
        """How many cells, in this order, end within so many seconds."""
        for count, cell in enumerate(cells):
            left -= self.seconds(*cell) or 0.0
            if left < 0:
                return count
        return len(cells)


class PeakMemory:
    """A context that notes the peak.

    On CUDA it is what torch's allocator counts. Elsewhere the memory held is looked at twenty times a second:
    Apple's GPU keeps no count of its peak, and the system's own count for a process is of its whole life. On
    the CPU it is this process's resident memory, without what loader processes hold.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def gib(self) -> float:
        """The peak so far, GiB."""
        held = peak_bytes(self._device) if self._device.type == "cuda" else self._peak
        return held / 2**30

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        """Sample until the end, at least once."""
        process = psutil.Process()
        while True:
            held = process.memory_info().rss if self._device.type == "cpu" else peak_bytes(self._device)
            self._peak = max(self._peak, held)
            if self._ended.wait(SAMPLE_SECONDS):
                return

"""Means of what the steps report, kept on the device and read once per log line."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from .distributed import reduce_mean, world_size


class Meter:
    """Adds up scalars on the device between two log lines, and the time and samples on the host."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        self._host: dict[str, float] = {}
        self._newest: dict[str, Tensor] = {}
        self.restart()

    def add(self, names: tuple[str, ...], values: Tensor, *, samples: int, wait_seconds: float) -> None:
        """Add one forward pass: (n,) values by name, without waiting for the device."""
        total, count = self._sums.get(names, (torch.zeros_like(values), 0))
        self._sums[names] = (total + values, count + 1)
        self._samples += samples
        self._waited += wait_seconds

    def note(self, values: dict[str, float]) -> None:
        """Remember numbers that the host knows (learning rate, EMA momentum); the newest counts."""
        self._host.update(values)

    def note_tensor(self, name: str, value: Tensor) -> None:
        """Remember one device scalar of the newest step."""
        self._newest[name] = value.detach()

    def restart(self) -> None:
        """Forget the time since the last line (something else than training took it)."""
        self._since = time.perf_counter()
        self._samples = 0
        self._waited = 0.0

    def read(self, extra: dict[str, Tensor]) -> dict[str, float]:
        """Read the means since the last call, with `extra` device scalars; waits for the device, once.

        Means are over processes too. Adds `speed/samples_per_second` (global), `speed/data_wait_fraction`
        and `seconds`.
        """
        extra = {**self._newest, **extra}
        names = [name for group in self._sums for name in group] + list(extra)
        means = [total / count for total, count in self._sums.values()]
        if extra:
            means.append(torch.stack([value.float() for value in extra.values()]))
        device_values = reduce_mean(torch.cat(means)).tolist() if means else []
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = dict(zip(names, device_values, strict=True))
        values |= self._host
        values["speed/samples_per_second"] = self._samples * world_size() / seconds
        values["speed/data_wait_fraction"] = min(1.0, self._waited / seconds)
        values["seconds"] = seconds
        self._sums.clear()
        self.restart()
        return values

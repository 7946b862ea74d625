"""Learning-rate schedules: cosine, steps or constant, after a warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """How the learning rate moves: linear warm-up, then `cosine`, `steps`, `poly` or `constant`."""

    name: Literal["cosine", "steps", "poly", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    final_fraction: float = 0.0  # cosine: share of the peak at the end
    milestones: tuple[float, ...] = ()  # steps: shares of the run, in (0, 1), at which the rate drops
    gamma: float = 0.1  # steps: factor of each drop
    power: float = 0.9  # poly: (1 - progress) ** power, as segmenters are trained

    def __post_init__(self) -> None:
        if self.name not in {"cosine", "steps", "poly", "constant"}:
            raise ValueError(
                f"schedule.name {self.name!r} is unknown; choose cosine, steps, poly or constant"
            )
        if self.warmup_epochs < 0:
            raise ValueError(f"schedule.warmup_epochs must be at least 0, not {self.warmup_epochs}")
        if any(not 0 < fraction < 1 for fraction in self.milestones):
            raise ValueError("schedule.milestones are shares of the run, each between 0 and 1")


def warmup_steps(settings: ScheduleSettings, total: int, steps_per_epoch: int) -> int:
    """Optimiser steps of warm-up: what the settings say, but at most half the run, as in a short trial."""
    return min(total // 2, round(settings.warmup_epochs * steps_per_epoch))


def lr_factor(settings: ScheduleSettings, step: int, total: int, steps_per_epoch: int) -> float:
    """Share of the peak learning rate at optimiser step `step` (from 0) of `total`."""
    warmup = warmup_steps(settings, total, steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if settings.name == "constant":
        return 1.0
    if settings.name == "steps":
        passed = sum(step >= fraction * total for fraction in settings.milestones)
        return float(settings.gamma**passed)
    progress = (step - warmup) / max(1, total - warmup)
    if settings.name == "poly":
        return float((1 - progress) ** settings.power)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.final_fraction + (1 - settings.final_fraction) * cosine

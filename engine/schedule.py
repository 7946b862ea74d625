"""Learning-rate schedules: cosine, steps or constant, after a warm-up."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from ..common.config import Fraction, NotNegative, Settings


class ScheduleSettings(Settings):
    """How the learning rate moves: linear warm-up, then `cosine`, `steps`, `poly` or `constant`."""

    name: Literal["cosine", "steps", "poly", "constant"] = "cosine"
    warmup_epochs: NotNegative = 0.0
    final_fraction: Fraction = 0.0  # cosine: fraction of the peak at the end
    # steps: fractions of the run at which the rate drops
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    gamma: Fraction = 0.1  # steps: factor of each drop
    power: NotNegative = 0.9  # poly: (1 - progress) ** power, as segmenters are trained


def warmup_steps(settings: ScheduleSettings, total: int, steps_per_epoch: int) -> int:
    """Optimiser steps of warm-up: what the settings say, but at most half the run, as in a short trial."""
    return min(total // 2, round(settings.warmup_epochs * steps_per_epoch))


def lr_factor(settings: ScheduleSettings, step: int, total: int, steps_per_epoch: int) -> float:
    """Fraction of the peak learning rate at optimiser step `step` (from 0) of `total`."""
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

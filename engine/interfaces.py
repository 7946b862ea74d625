"""What the loop takes and gives: a module's result, a source of batches, settings, hooks, the fit's end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from .schedule import ScheduleSettings


class Result(Protocol):
    """What `module(batch)` returns; `pretrain.methods.base.Output` is one."""

    loss: Tensor  # scalar, differentiated
    loss_terms: dict[str, Tensor]  # scalars without their weights, logged as loss/NAME
    metrics: dict[str, Tensor]  # other scalars, logged under their own names
    embeddings: Tensor | None  # (N, D), whose spread is logged
    references: dict[str, float]  # chance level of a loss term or a metric, logged as chance/NAME


class Source(Protocol):
    """Where batches come from; `data.loading.loader.Loader` is one.

    A batch is anything with `len()` (samples of this process) that the module takes.
    """

    wait_seconds: float  # how long the last batch was waited for

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
        """Give the epoch's batches from `first_step` on, on the device."""


def unchanged(batch: Any) -> Any:
    """Take a batch as it comes."""
    return batch


def no_numbers(step: int, total: int) -> dict[str, float]:
    """Do nothing after a step."""
    return {}


def no_change() -> None:
    """Do nothing before an update."""


def no_look(batch: Any) -> None:
    """Do nothing with the first batch."""


def no_validation() -> dict[str, float]:
    """Measure nothing between two steps."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a caller of `fit` may do at five places of the loop; by default nothing."""

    prepare: Callable[[Any], Any] = unchanged  # every batch before the module (memory format)
    before_update: Callable[[], None] = no_change  # between clipping and every update, to change gradients
    after_step: Callable[[int, int], dict[str, float]] = no_numbers  # (step, total) after every update
    on_first_batch: Callable[[Any], None] = no_look  # once, with the first prepared batch
    # before the first step and every `validate_every` steps, on the first process; gives numbers to log
    validate: Callable[[], dict[str, float]] = no_validation


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How to fit; none of it names a method or a data set."""

    total_steps: int  # optimiser steps
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    grad_accum_steps: int = 1  # batches per optimiser step
    clip_norm: float | None = None
    precision: str = "fp32"  # fp32 or bf16 (autocast)
    log_every: int = 10  # optimiser steps
    checkpoint_every: int = 500  # optimiser steps; also at the end and on a signal
    keep_every: int = 0  # optimiser steps between checkpoints kept for good; 0 keeps none
    validate_every: int = 0  # optimiser steps between calls of the hook `validate`; 0 never
    # what later numbers are compared with, by name, to warn when they fall below it: numbers of the start, or
    # none yet, which takes the first ones of the run; None: nothing is compared
    start_values: dict[str, float] | None = None
    stop_after: int | None = None  # leave with a checkpoint after this many steps of this session
    profile: int = 0  # steps traced by torch.profiler, after five
    seed: int = 0
    draw_alike: bool = (
        False  # all processes draw the same numbers; the module takes its samples' part of them
    )
    workers: int | None = None  # loader workers; a run without them is not told to raise them


@dataclass(frozen=True)
class FitResult:
    """How a fit ended."""

    step: int  # optimiser steps done in all
    stopped_by: str | None  # the signal's name or "stop_after"; None when all steps are done
    last: dict[str, float]  # the last log line

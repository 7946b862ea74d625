"""The training loop: fits any module that gives a loss for a batch. Knows neither methods nor data formats.

Who uses it: `pretrain/train.py` for methods, evaluation's fine-tuning for detectors and segmenters. The
loop never waits for the device between two log lines: no `.item()`, no `.cpu()`, no printing of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .batchnorm import average_running_statistics
from .checkpoint import save_checkpoint
from .distributed import DataParallel, World, any_process, barrier, host_group
from .guard import FiniteGuard
from .health import collapse_metrics, health_warnings
from .meter import Meter
from .optimizers import mask_updates, set_lr
from .run_logger import CHANCE, RunLogger
from .schedule import ScheduleSettings, lr_factor
from .stop import StopRequest
from .trace import tracer


class Result(Protocol):
    """What `module(batch)` returns; `pretrain.methods.base.Output` is one."""

    loss: Tensor  # scalar, differentiated
    loss_terms: dict[str, Tensor]  # scalars, logged
    embeddings: Tensor | None  # (N, D), whose spread is logged
    references: dict[str, float]  # value of a part at chance level


class Source(Protocol):
    """Where batches come from; `data.loader.Loader` is one.

    A batch is anything with `len()` (samples of this process) that the module takes.
    """

    wait_seconds: float  # how long the last batch was waited for

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
        """Give the epoch's batches from `first_step` on, on the device."""


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
    check_every: int = 0  # optimiser steps between calls of `check`; 0 never
    stop_after: int | None = None  # leave with a checkpoint after this many steps of this session
    profile: int = 0  # steps traced by torch.profiler, after five
    seed: int = 0
    workers: int | None = None  # loader workers, named in the advice to a starving run


@dataclass(frozen=True)
class FitResult:
    """How a fit ended."""

    step: int  # optimiser steps done in all
    stopped_by: str | None  # the signal's name or "stop_after"; None when all steps are done
    last: dict[str, float]  # the last log line


def fit(
    module: nn.Module,
    source: Source,
    optimizer: torch.optim.Optimizer,
    settings: LoopSettings,
    *,
    world: World,
    run_logger: RunLogger | None = None,
    folder: Path | None = None,
    config: dict[str, Any] | None = None,
    first_step: int = 0,
    prepare: Callable[[Any], Any] | None = None,
    after_step: Callable[[int, int], dict[str, float]] | None = None,
    look: Callable[[Any], None] | None = None,
    check: Callable[[], dict[str, float]] | None = None,
) -> FitResult:
    """Train until `settings.total_steps`, a signal, or a loss that is not finite.

    Args:
        module: `module(batch)` gives a `Result`; on the device already. With several processes it is
        wrapped in
            DistributedDataParallel here, and each process must return the mean loss over its slice.
        source: of batches; position (epoch, step) is computed from `first_step`.
        optimizer: from `optimizers.build_optimizer` (its groups carry `peak_lr`).
        settings: see `LoopSettings`.
        world: this process among the others, from `distributed.processes`.
        run_logger: where numbers go; None: nowhere.
        folder: where checkpoints go; None: none are written.
        config: JSON-able settings kept inside the checkpoints.
        first_step: optimiser steps done before (from a checkpoint).
        prepare: applied to every batch first (memory format, augmentation on the device).
        after_step: called with (step, total) after every update; returns numbers known on the host.
        look: called once, with the first prepared batch (pictures for the report).
        check: called before the first step and then every `check_every` steps, on the first process;
        returns
            numbers to log.

    Returns:
        How it ended.

    Raises:
        NonFiniteLossError: no parameter was changed by the bad step.
    """
    run_logger = run_logger or RunLogger(None, total=settings.total_steps)
    state = _Fit(module, source, optimizer, settings, world, run_logger, folder, config or {}, first_step)
    state.prepare, state.after_step, state.look, state.check = prepare, after_step, look, check
    with StopRequest() as stop, tracer(settings.profile, folder, world) as trace:
        return state.run(stop, trace)


class _Fit:
    """The moving parts of one call of `fit`."""

    prepare: Callable[[Any], Any] | None
    after_step: Callable[[int, int], dict[str, float]] | None
    look: Callable[[Any], None] | None
    check: Callable[[], dict[str, float]] | None

    def __init__(
        self,
        module: nn.Module,
        source: Source,
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        world: World,
        run_logger: RunLogger,
        folder: Path | None,
        config: dict[str, Any],
        first_step: int,
    ) -> None:
        self.module, self.source, self.optimizer, self.settings = module, source, optimizer, settings
        self.world, self.run_logger, self.folder, self.config = world, run_logger, folder, config
        self.step = first_step
        self.last: dict[str, float] = {}
        self.meter = Meter()
        self.guard = FiniteGuard(world.device)
        self.masked = mask_updates(optimizer, self.guard.found_inf)
        self.steps_per_epoch = source.steps_per_epoch // settings.grad_accum_steps
        if self.steps_per_epoch < 1:
            raise ValueError("an epoch of the source holds no whole optimiser step")
        self.parallel = (
            DataParallel(module, world.device, grad_accum_steps=settings.grad_accum_steps)
            if world.size > 1
            else module
        )
        # a CPU group, so that agreeing on a stop does not wait for the device
        self.host_group = host_group()
        self.references: dict[str, float] = {}
        self.embeddings: Tensor | None = None
        self.said: set[str] = set()
        self.logged = False

    def run(self, stop: StopRequest, trace: Callable[[], None]) -> FitResult:
        """Step until the last step or a signal; `trace` is called after every step."""
        batches = self.stream()
        if self.step == 0:
            self.run_check()  # the row of random weights, and a mistake in its data shows at once
        last_step = self.settings.total_steps
        if self.settings.stop_after is not None:
            last_step = min(last_step, self.step + self.settings.stop_after)
        while self.step < last_step:
            self.one_step(batches)
            trace()
            stopping = any_process(stop.asked, self.host_group)
            self.after(final=stopping or self.step == last_step)
            if stopping:
                self.run_logger.info(
                    f"{stop.name or 'another process'} asked to stop: left after step {self.step}"
                )
                return FitResult(self.step, stop.name or "signal", self.last)
        ended = None if self.step >= self.settings.total_steps else "stop_after"
        return FitResult(self.step, ended, self.last)

    def stream(self) -> Iterator[Any]:
        """Batches from the current position on, epoch after epoch."""
        epoch, within = divmod(self.step, self.steps_per_epoch)
        while True:
            whole = self.steps_per_epoch * self.settings.grad_accum_steps
            first = within * self.settings.grad_accum_steps
            batches = self.source.batches(epoch, first)
            for _ in range(first, whole):
                yield next(batches)
            epoch, within = epoch + 1, 0

    def one_step(self, batches: Iterator[Any]) -> None:
        """Forward, backward, masked update, and what follows it."""
        settings = self.settings
        factor = lr_factor(settings.schedule, self.step, settings.total_steps, self.steps_per_epoch)
        lr = set_lr(self.optimizer, factor)
        _seed_step(settings.seed, self.step, self.world.rank)
        values: list[Tensor] = []
        for part in range(settings.grad_accum_steps):
            batch = next(batches)
            self._forward_backward(batch, values, last=part == settings.grad_accum_steps - 1)
        names = ("loss", *self.names)
        if settings.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip_norm)
            self.meter.note_tensor("gradient_norm", norm)
        self.guard.check(self.step, names, torch.stack(values).mean(0))
        if not self.masked:
            self.guard.raise_if_failed()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.note({"lr": lr, "epoch": (self.step + 1) / self.steps_per_epoch})
        if self.after_step is not None:
            self.meter.note(self.after_step(self.step, settings.total_steps))
        self.step += 1

    def _forward_backward(self, batch: Any, values: list[Tensor], *, last: bool) -> None:
        """One batch of an optimiser step; gradients are exchanged at the last one only."""
        settings = self.settings
        if self.prepare is not None:
            batch = self.prepare(batch)
        if self.look is not None:
            self.look(batch)
            self.look = None
        apart = isinstance(self.parallel, DataParallel) and not last
        with self.parallel.no_sync() if apart else nullcontext():  # type: ignore[operator]
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                result: Result = self.parallel(batch)
            (result.loss / settings.grad_accum_steps).backward()  # type: ignore[no-untyped-call]
        self.names = tuple(result.loss_terms)
        scalars = [result.loss, *result.loss_terms.values()]
        values.append(torch.stack([scalar.detach().float().reshape(()) for scalar in scalars]))
        self.references, self.embeddings = result.references, result.embeddings
        self.meter.add(
            ("loss", *self.names), values[-1], samples=len(batch), wait_seconds=self.source.wait_seconds
        )

    def after(self, *, final: bool) -> None:
        """Log, check and save where it is time; only here does the host wait for the device."""
        settings = self.settings
        self.run_logger.advance(self.step)
        if final or self.step % settings.log_every == 0 or self.step == 1:
            self._log()
        if settings.check_every and (final or self.step % settings.check_every == 0):
            self.run_check()
        keep = settings.keep_every > 0 and self.step % settings.keep_every == 0
        if final or keep or self.step % settings.checkpoint_every == 0:
            self._save(keep=keep)

    def run_check(self) -> None:
        """Let the first process measure something between two steps, and log it."""
        if not self.settings.check_every:
            return
        if self.world.first and self.check is not None:
            self.run_logger.record(self.step, self.check())
        barrier()
        self.meter.restart()

    def _log(self) -> None:
        """Read the means, stop if a loss was not finite, write one line, complain in words."""
        self.guard.raise_if_failed()
        extra = (
            {} if self.embeddings is None or len(self.embeddings) < 2 else collapse_metrics(self.embeddings)
        )
        values = self.meter.read(extra)
        if self.world.device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.world.device) / 2**30
        else:
            values["peak_memory_gib"] = _peak_resident_bytes() / 2**30
        values |= {name + CHANCE: value for name, value in self.references.items()}
        self.last = values
        self.run_logger.record(self.step, values)
        progress = self.step / self.settings.total_steps
        judged = values
        if not self.logged:  # the first line of a session holds the start of the workers
            judged = {name: value for name, value in values.items() if name != "data_wait_fraction"}
        self.logged = True
        for sentence in health_warnings(
            judged, self.references, progress=progress, workers=self.settings.workers
        ):
            kind = sentence.split(":")[0]
            if kind not in self.said:  # once per kind and session; the numbers go on in the metrics
                self.said.add(kind)
                self.run_logger.info(f"warning at step {self.step}: {sentence}")

    def _save(self, *, keep: bool) -> None:
        """Write a checkpoint from the first process; never one of a state after a bad loss."""
        if self.folder is None:
            return
        self.guard.raise_if_failed()
        average_running_statistics(self.module)
        if self.world.first:
            save_checkpoint(
                self.folder,
                step=self.step,
                module=self.module,
                optimizer=self.optimizer,
                settings=self.config,
                keep=keep,
            )
        barrier()


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch by counter, so that dropout and the like are drawn again after a resume."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def _peak_resident_bytes() -> int:
    """Largest memory this process has held, bytes (Linux counts in KiB, macOS in bytes)."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

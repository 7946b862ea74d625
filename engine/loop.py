"""The training loop: fits any module that gives a loss for a batch. Knows neither methods nor data formats.

Who uses it: `pretrain/train.py` for methods, evaluation's fine-tuning for detectors and segmenters. The
loop never waits for the device between two log lines: no `.item()`, no `.cpu()`, no printing of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batchnorm import average_running_statistics
from .checkpoint import save_checkpoint
from .distributed import DataParallel, World, any_process, barrier, host_group
from .guard import FiniteGuard
from .health import HealthWatch, collapse_metrics
from .interfaces import FitResult, Hooks, LoopSettings, Result, Source
from .meter import Meter
from .optimizers import mask_updates, set_lr
from .run_logger import CHANCE, LOSS, RunLogger
from .schedule import lr_factor
from .stop import StopRequest
from .trace import tracer


def fit(
    module: nn.Module,
    source: Source,
    optimizer: torch.optim.Optimizer,
    settings: LoopSettings,
    *,
    world: World,
    hooks: Hooks | None = None,
    run_logger: RunLogger | None = None,
    folder: Path | None = None,
    config: dict[str, Any] | None = None,
    first_step: int = 0,
) -> FitResult:
    """Train until `settings.total_steps`, a signal, or a loss that is not finite.

    Args:
        module: `module(batch)` gives a `Result`; on the device already. With several processes it is wrapped
            in DistributedDataParallel here, and each process must return the mean loss over its slice.
        source: of batches; the position (epoch, step) is computed from `first_step`.
        optimizer: from `optimizers.build_optimizer` (its groups carry `peak_lr`).
        settings: see `LoopSettings`.
        world: this process among the others, from `distributed.processes`.
        hooks: what the caller does at four places of the loop; None: nothing.
        run_logger: where numbers go; None: nowhere.
        folder: where checkpoints go; None: none are written.
        config: JSON-able settings kept inside the checkpoints.
        first_step: optimiser steps done before (from a checkpoint).

    Returns:
        How it ended.

    Raises:
        NonFiniteLossError: no parameter was changed by the bad step.
    """
    loop = _Fit(
        module,
        source,
        optimizer,
        settings,
        world=world,
        hooks=hooks or Hooks(),
        run_logger=run_logger or RunLogger(None, total=settings.total_steps),
        folder=folder,
        config=config or {},
        first_step=first_step,
    )
    with StopRequest() as stop, tracer(settings.profile, folder, world) as trace:
        return loop.run(stop, trace)


class _Fit:
    """The moving parts of one call of `fit`."""

    def __init__(
        self,
        module: nn.Module,
        source: Source,
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        *,
        world: World,
        hooks: Hooks,
        run_logger: RunLogger,
        folder: Path | None,
        config: dict[str, Any],
        first_step: int,
    ) -> None:
        self.module, self.source, self.optimizer, self.settings = module, source, optimizer, settings
        self.world, self.hooks, self.run_logger = world, hooks, run_logger
        self.folder, self.config = folder, config
        self.step = first_step
        self.last: dict[str, float] = {}
        self.meter = Meter()
        self.guard = FiniteGuard(world.device)
        # whether the optimiser itself leaves the parameters alone after a bad loss; else the host must look
        self.updates_masked = mask_updates(optimizer, self.guard.found_inf)
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
        self.result: Result | None = None  # of the newest batch
        self.first_batch_seen = False
        self.health = HealthWatch(total_steps=settings.total_steps, workers=settings.workers)

    def run(self, stop: StopRequest, trace: Callable[[], None]) -> FitResult:
        """Step until the last step or a signal; `trace` is called after every step."""
        batches = self.stream()
        if self.step == 0:
            self.validate()  # the row of random weights, and a mistake in its data shows at once
        last_step = self.settings.total_steps
        if self.settings.stop_after is not None:
            last_step = min(last_step, self.step + self.settings.stop_after)
        while self.step < last_step:
            self.one_step(batches)
            trace()
            stopping = any_process(stop.asked, self.host_group)
            self.after_step(final=stopping or self.step == last_step)
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
        parts = range(settings.grad_accum_steps)
        names, values = zip(
            *(self.forward_backward(next(batches), last=part == parts[-1]) for part in parts), strict=True
        )
        if settings.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip_norm)
            self.meter.note_tensor("gradient/norm", norm)
        self.guard.check(self.step, names[0], torch.stack(values).mean(0))
        if not self.updates_masked:
            self.guard.raise_if_failed()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.note({"schedule/lr": lr, "epoch": (self.step + 1) / self.steps_per_epoch})
        self.meter.note(self.hooks.after_step(self.step, settings.total_steps))
        self.step += 1

    def forward_backward(self, batch: Any, *, last: bool) -> tuple[tuple[str, ...], Tensor]:
        """One batch of an optimiser step; gradients are exchanged at the last one only.

        Returns:
            Names and values, (n,) float32 on the device, of what is logged; the loss comes first.
        """
        settings = self.settings
        batch = self.hooks.prepare(batch)
        if not self.first_batch_seen:
            self.hooks.on_first_batch(batch)
            self.first_batch_seen = True
        alone = isinstance(self.parallel, DataParallel) and not last
        with self.parallel.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                result: Result = self.parallel(batch)
            (result.loss / settings.grad_accum_steps).backward()  # type: ignore[no-untyped-call]
        self.result = result
        scalars = {"loss": result.loss}
        scalars |= {LOSS + name: value for name, value in result.loss_terms.items()} | result.metrics
        names = tuple(scalars)
        values = torch.stack([value.detach().float().reshape(()) for value in scalars.values()])
        self.meter.add(names, values, samples=len(batch), wait_seconds=self.source.wait_seconds)
        return names, values

    def after_step(self, *, final: bool) -> None:
        """Log, validate and save where it is time; only here does the host wait for the device."""
        settings = self.settings
        self.run_logger.advance(self.step)
        if final or self.step % settings.log_every == 0 or self.step == 1:
            self.log()
        if final or (settings.validate_every and self.step % settings.validate_every == 0):
            self.validate()
        keep = settings.keep_every > 0 and self.step % settings.keep_every == 0
        if final or keep or self.step % settings.checkpoint_every == 0:
            self.save(keep=keep)

    def validate(self) -> None:
        """Let the first process measure something between two steps, and log it."""
        if not self.settings.validate_every:
            return
        if self.world.first:
            self.run_logger.show_activity("validating")
            self.run_logger.record(self.step, self.hooks.validate())
        barrier()
        self.meter.restart()

    def log(self) -> None:
        """Read the means, stop if a loss was not finite, write one line, and warn in words."""
        self.guard.raise_if_failed()
        assert self.result is not None, "a line is written after a step"
        embeddings = self.result.embeddings
        spread = {} if embeddings is None or len(embeddings) < 2 else collapse_metrics(embeddings)
        values = self.meter.read(spread)
        values["memory/peak_gib"] = _peak_bytes(self.world.device) / 2**30
        values |= {CHANCE + name: value for name, value in self.result.references.items()}
        self.last = values
        self.run_logger.record(self.step, values)
        for sentence in self.health.judge(self.step, values, self.result.references):
            self.run_logger.info(f"warning at step {self.step}: {sentence}")

    def save(self, *, keep: bool) -> None:
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
                config=self.config,
                keep=keep,
            )
        barrier()


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch by counter, so that dropout and the like are drawn again after a resume."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def _peak_bytes(device: torch.device) -> int:
    """Largest memory held so far: on the GPU, or by this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB, macOS in bytes
    return peak if sys.platform == "darwin" else peak * 1024

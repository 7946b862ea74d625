"""The training loop: fits any module that gives a loss for a batch. Knows neither methods nor data formats.

Who uses it: `pretrain/train.py` for methods, evaluation's fine-tuning for detectors and segmenters. The
loop never waits for the device between two log lines: no `.item()`, no `.cpu()`, no printing of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.errors import UserError
from ..common.system.devices import peak_bytes
from .batchnorm import SplitBatchNorm, average_running_statistics
from .checkpoint import LAST, save_checkpoint
from .distributed import DataParallel, World, all_or_none, any_process, barrier, host_group
from .guard import FiniteGuard, NonFiniteLossError, WholeStep
from .health import HealthWatch, StartWatch, collapse_metrics
from .interfaces import FitResult, Hooks, LoopSettings, Result, Source
from .loggers.run_files import CHANCE, LOSS
from .loggers.run_logger import RunLogger
from .meter import Meter
from .optimizers import mask_updates, set_lr
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
        hooks: what the caller does at five places of the loop; None: nothing.
        run_logger: where numbers go; None: nowhere.
        folder: where checkpoints go; None: none are written.
        config: JSON-able settings kept inside the checkpoints.
        first_step: optimiser steps done before (from a checkpoint).

    Returns:
        How it ended.

    Raises:
        NonFiniteLossError: no parameter was changed by the bad step.
        Exception: any other error of the module, the source or the disk, after a checkpoint of the last whole
            step where one can be written; the error's notes say what is saved.
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
    left = settings.total_steps - first_step
    left = left if settings.stop_after is None else min(left, settings.stop_after)
    say = loop.run_logger.info
    with StopRequest() as stop, tracer(settings.profile, folder, world, left=left, info=say) as trace:
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
        self.step = self.first_step = first_step
        self.last: dict[str, float] = {}
        self.meter = Meter()
        self.guard = FiniteGuard(world.device)
        self.whole_step = WholeStep(module)
        resumed_here = first_step > 0 and folder is not None and (folder / LAST).exists()
        self.saved_step = first_step if resumed_here else None  # of the checkpoint in the folder
        self.saving = False
        self.leaving_together = False  # all processes leave at the same place
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
        self.start = StartWatch(settings.start_values, total_steps=settings.total_steps)

    def run(self, stop: StopRequest, trace: Callable[[], None]) -> FitResult:
        """Step until the last step, a signal or an error; `trace` is called after every step."""
        with ExitStack() as stack:
            stack.push(self.leave)
            return self.steps(stop, trace)

    def steps(self, stop: StopRequest, trace: Callable[[], None]) -> FitResult:
        """Step until the last step or a signal."""
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

    def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error (not a second Ctrl-C), save the last whole step and note in it what is saved."""
        if not isinstance(error, Exception) or isinstance(error, NonFiniteLossError):
            return  # a loss that is not finite says itself how to go on
        if self.folder is None or self.step == self.first_step:
            return  # nothing to save
        hindrance = self.rescue() if self.saved_step != self.step else ""
        if not self.world.first:
            return
        lost = f"step {self.step} could not be saved ({hindrance}); " if hindrance else ""
        if self.saved_step is None:
            error.add_note(f"{lost}there is no checkpoint yet")
        else:
            error.add_note(
                f"{lost}{self.folder / LAST} holds step {self.saved_step} of {self.settings.total_steps}: "
                "give the same command again, where it has it with --resume auto"
            )

    def rescue(self) -> str:
        """Save the last whole step after an error; gives what is in the way of that, or nothing."""
        if self.saving:
            return "that is what failed"
        if not self.whole_step.restore():
            return "the next one was half done"
        alone = self.world.size > 1 and not self.leaving_together
        if alone and any(isinstance(part, SplitBatchNorm) for part in self.module.modules()):
            return "its BatchNorm statistics are spread over processes that are gone"
        try:
            self.save(keep=False, alone=alone)
        except (UserError, OSError, RuntimeError, MemoryError) as error:
            return str(error).partition("\n")[0]
        return ""

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
        self.whole_step.begin()
        factor = lr_factor(settings.schedule, self.step, settings.total_steps, self.steps_per_epoch)
        lr = set_lr(self.optimizer, factor)
        _seed_step(settings.seed, self.step, 0 if settings.draw_alike else self.world.rank)
        parts = range(settings.grad_accum_steps)
        names, values = zip(
            *(self.forward_backward(self.next_batch(batches), last=part == parts[-1]) for part in parts),
            strict=True,
        )
        if settings.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip_norm)
            self.meter.note_tensor("gradient/norm", norm)
        self.guard.check(self.step, names[0], torch.stack(values).mean(0))
        if not self.updates_masked:
            self.guard.raise_if_failed()
        self.hooks.before_update()
        self.whole_step.begin_update()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.note({"schedule/lr": lr, "epoch": (self.step + 1) / self.steps_per_epoch})
        self.meter.note(self.hooks.after_step(self.step, settings.total_steps))
        self.step += 1
        self.whole_step.end()

    def next_batch(self, batches: Iterator[Any]) -> Any:
        """Take a batch; where one process gets none all leave here, or the others would wait for it."""
        if self.world.size == 1:
            return next(batches)
        batch, failure = None, None
        try:
            batch = next(batches)
        except UserError as error:
            failure = error
        if any_process(failure is not None, self.host_group):
            self.leaving_together = True
            with all_or_none():
                if failure is not None:
                    raise failure
        return batch

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
            self.record(self.hooks.validate())
        barrier()
        self.meter.restart()

    def record(self, values: dict[str, float]) -> None:
        """Write one line, and warn where a number of it has fallen below that of the start."""
        self.run_logger.record(self.step, values)
        for sentence in self.start.judge(self.step, values):
            self.run_logger.info(f"warning at step {self.step}: {sentence}")

    def log(self) -> None:
        """Read the means, stop if a loss was not finite, write one line, and warn in words."""
        self.guard.raise_if_failed()
        assert self.result is not None, "a line is written after a step"
        embeddings = self.result.embeddings
        spread = {} if embeddings is None or len(embeddings) < 2 else collapse_metrics(embeddings)
        values = self.meter.read(spread)
        values["memory/peak_gib"] = peak_bytes(self.world.device) / 2**30
        values |= {CHANCE + name: value for name, value in self.result.references.items()}
        self.last = values
        self.record(values)
        for sentence in self.health.judge(self.step, values, self.result.references):
            self.run_logger.info(f"warning at step {self.step}: {sentence}")

    def save(self, *, keep: bool, alone: bool = False) -> None:
        """Write a checkpoint from the first process; never one of a state after a bad loss.

        Args:
            keep: also for good.
            alone: without the other processes, which are elsewhere or gone.
        """
        if self.folder is None:
            return
        self.saving = True
        self.guard.raise_if_failed()
        if not alone:
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
        self.saved_step, self.saving = self.step, False
        if not alone:
            barrier()


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch by counter, so that dropout and the like are drawn again after a resume."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))

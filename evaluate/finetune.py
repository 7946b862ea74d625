"""Training in evaluation: the engine's loop, optimisers, checkpoints and run logger, nothing else.

A run in a folder resumes from its `last.pt`: batches and draws depend on (seed, step) alone, so the resumed
run ends in the same weights, bit for bit on the CPU.

Under torchrun every process trains on its part of each batch. The batch, its draws and the images over which
BatchNorm normalises are those of the whole batch whatever the number of processes, so the numbers are those
of one process up to rounding, and a run of two goes on in one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.errors import UserError
from ..engine.batchnorm import synchronise_batch_norm
from ..engine.checkpoint import LAST, load_checkpoint, restore
from ..engine.distributed import World, rank, world_size
from ..engine.guard import NonFiniteLossError
from ..engine.interfaces import LoopSettings
from ..engine.loggers.run_files import read_metrics
from ..engine.loggers.run_logger import RunLogger
from ..engine.loop import fit
from ..engine.optimizers import OptimizerSettings, build_optimizer
from ..engine.schedule import ScheduleSettings
from .batches import TaskBatches
from .draws import draw_for_all
from .processes import Leaving
from .settings import Runtime


class RunStopped(Leaving):
    """A signal stopped the training after a checkpoint; the same command goes on from there."""


Curve = list[tuple[int, float]]


def train(
    module: nn.Module,
    batches: TaskBatches,
    *,
    steps: int,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    seed: int,
    runtime: Runtime,
    config: dict[str, Any],
    groups: Iterable[dict[str, Any]] | None = None,
    clip_norm: float | None = None,
) -> Curve:
    """Fit `module` to the end, from its checkpoint if the run folder holds one.

    Args:
        module: `module(TaskBatch)` gives an `Output`; moved to the device here. With several processes it
            gives the mean loss over its part, and its BatchNorms are replaced by synchronised ones.
        batches: where training samples come from.
        steps: optimiser steps in all.
        optimizer, schedule: as for pretraining.
        seed: of dropout and sampling.
        runtime: device, workers, run folder.
        config: JSON-able; a checkpoint of another config is refused.
        groups: parameter groups; None takes all of the module's.
        clip_norm: cut the gradient norm to this.

    Returns:
        The loss by step, as the run logger wrote it ([] without a run folder, and on other processes than the
        first).

    Raises:
        UserError: if the run folder holds another training.
        RunStopped: after a signal.
    """
    world = World(rank=rank(), size=world_size(), device=runtime.device)
    synchronise_batch_norm(module.to(runtime.device), runtime.device)
    draw_for_all(module)
    made = build_optimizer(
        module if groups is None else groups, optimizer, batch_size=batches.batch_size, device=runtime.device
    )
    folder = runtime.seed_folder(seed)
    first_step = _restore(module, made, folder, config)
    settings = LoopSettings(
        total_steps=steps,
        schedule=schedule,
        clip_norm=clip_norm,
        precision=runtime.precision,
        log_every=max(1, steps // 50),
        checkpoint_every=runtime.checkpoint_every,
        stop_after=runtime.stop_after,
        seed=seed,
        draw_alike=True,
    )
    if first_step < steps:
        what = f"training from step {first_step}" if first_step else "training steps"
        with runtime.progress(what, steps - first_step) as batches.advance:
            _fit(module, batches, made, settings, folder, config, first_step, world)
    module.eval()
    if folder is None or not world.first:
        return []
    return [(int(line["step"]), line["loss"]) for line in read_metrics(folder) if "loss" in line]


def _fit(
    module: nn.Module,
    batches: TaskBatches,
    optimizer: torch.optim.Optimizer,
    settings: LoopSettings,
    folder: Path | None,
    config: dict[str, Any],
    first_step: int,
    world: World,
) -> None:
    """Run the engine's loop; a stop and a loss that is not finite end in a line for the user."""
    total = settings.total_steps
    written = folder if world.first else None
    with RunLogger(written, total=total, resumed_step=first_step, show=False) as run_logger:
        try:
            ended = fit(
                module,
                batches,
                optimizer,
                settings,
                world=world,
                run_logger=run_logger,
                folder=folder,
                config=config,
                first_step=first_step,
            )
        except NonFiniteLossError as error:
            reason = str(error).partition(". ")[0]
            raise UserError(
                f"{reason}. Lower the learning rate (--set lr=... or --set base_lr=...)"
                + (f" and remove {folder}" if folder else "")
            ) from error
    if ended.stopped_by is not None:
        kept = f"the same command continues from {folder}" if folder else "nothing was kept"
        place = f"step {ended.step} of {total}" if ended.step < total else "the last step"
        raise RunStopped(f"stopped by {ended.stopped_by} after {place}; {kept}")


def _restore(
    module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path | None, config: dict[str, Any]
) -> int:
    """Load the run folder's checkpoint, if there is one; give the steps done."""
    module.train()
    if folder is None or not (folder / LAST).exists():
        return 0
    state = load_checkpoint(folder / LAST)
    if state["config"] != config:
        changed = [key for key in config if state["config"].get(key) != config[key]]
        raise UserError(
            f"{folder} holds a run with other settings ({', '.join(changed) or 'other keys'}); "
            "remove that folder or choose another --out"
        )
    restore(folder / LAST, state, module, optimizer)
    return int(state["step"])

"""One pretraining run: from settings to a run folder with weights. Joins data, method and engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..common.atomic_files import remove_leftovers
from ..common.locks import hold_folder
from ..common.system.devices import device_name
from ..common.system.processor import computes_bf16
from ..data.crop_kernel import compile_kernels, kernels_are_compiled
from ..data.loading.batch import Batch
from ..data.loading.selection import Selection
from ..engine.checkpoint import load_checkpoint, restore
from ..engine.distributed import World, all_or_none, processes
from ..engine.interfaces import FitResult, Hooks, no_change
from ..engine.loggers.dashboards import check_installed
from ..engine.loggers.origin import session_origin
from ..engine.loggers.run_files import write_config
from ..engine.loggers.run_logger import RunLogger
from ..engine.loop import fit
from ..engine.optimizers import build_optimizer
from ..engine.schedule import warmup_steps
from ..models.backbones.base import Backbone
from ..models.backbones.resnet import restore_lines
from ..models.write_weights import write_safetensors
from .components import Components, assemble, describe, loop_settings
from .config.settings import RunSettings
from .diagnose.online_knn import OnlineKnn
from .first_pass import run_first_pass
from .modules.memory import path_difference, remembered_paths
from .report.views import KEPT, save_method_pictures, save_views
from .resume import check_same_training, find_checkpoint, note_extension, refuse_unusable_folder
from .start import FeaturePull, Pull, parameter_groups, start_values

WEIGHTS = "backbone.safetensors"


@dataclass(frozen=True)
class RunResult:
    """A finished or stopped run."""

    folder: Path
    step: int
    total_steps: int
    stopped_by: str | None  # a signal's name or "stop_after"; None: trained to the end
    last: dict[str, float]  # the last log line


def pretrain(settings: RunSettings, *, show: bool = True) -> RunResult:
    """Train a backbone; everything ends in the run folder.

    Under torchrun every process calls this; the first one writes.

    Args:
        settings: see `RunSettings`; `settings.resume` continues a run, bit-identically on the CPU.
        show: whether progress and warnings go to the terminal too (they are in train.log anyway).

    Returns:
        Where the run is and how it ended.

    Raises:
        UserError: for settings, data or files that do not fit.
        NonFiniteLossError: when the loss is not finite.

    Examples:
        >>> from hapicl import resolve
        >>> small = {"arch": "resnet18", "image_size": 32, "batch_size": 4, "workers": 0, "device": "cpu"}
        >>> settings, notes = resolve({"masks": "masks.h5", "out": "runs/new", "steps": 2, **small})
        >>> result = pretrain(settings, show=False)
        >>> result.step, result.stopped_by, (result.folder / "backbone.safetensors").exists()
        (2, None, True)
    """
    with ExitStack() as stack:
        world = stack.enter_context(processes(settings.device))
        folder = Path(settings.out or f"runs/{settings.method}_{settings.arch.replace(':', '_')}")
        relay = stack.enter_context(_relayed_warnings())
        with all_or_none():
            if world.first:
                check_installed(settings.dashboards)
                refuse_unusable_folder(folder)
                advice = "wait for it to end, or choose another --out"
                stack.enter_context(hold_folder(folder, advice=advice))
                remove_leftovers(folder)
        with all_or_none():
            start = _make_ready(settings, world, folder)
            stack.enter_context(start.components.loader)
        run_logger = stack.enter_context(
            RunLogger(
                folder if world.first else None,
                total=start.components.context.total_steps,
                resumed_step=start.first_step,
                show=show,
                dashboards=settings.dashboards,
                config=start.config,
            )
        )
        relay.open(run_logger.info)
        if world.first:
            write_config(folder, start.config)
        return _train(start, folder, run_logger)


@dataclass(frozen=True)
class _Start:
    """A run before its first step: everything that can be refused has been looked at."""

    components: Components
    config: dict[str, Any]  # config.json
    optimizer: torch.optim.Optimizer
    first_step: int
    knn: OnlineKnn | None
    extended: str  # what to say of a run that has become longer
    pull: Callable[[], None]  # towards the weights it started from
    start_values: dict[str, float] | None


def _make_ready(settings: RunSettings, world: World, folder: Path) -> _Start:
    """Build the run, and go on from its checkpoint if there is one; writes nothing."""
    checkpoint = find_checkpoint(settings, folder)
    components = assemble(settings, world)
    config = describe(components)
    method, paths = components.method, list(components.loader.paths)
    optimizer = _build_optimizer(components)
    # both are made before the checkpoint moves the backbone
    pull = no_change if settings.pull is None else Pull(components.backbone, settings.pull)
    if settings.feature_pull is not None:
        compared = settings.feature_pull_on or "map"
        FeaturePull(method, components.backbone, settings.feature_pull, compared)
    first_step, extended, sessions = 0, "", []
    if checkpoint is not None:
        state = load_checkpoint(checkpoint)
        remembered = remembered_paths(state["module"])
        difference = "" if remembered is None else path_difference(remembered, paths)
        check_same_training(state["config"], config, checkpoint, images_differ_in=difference)
        restore(checkpoint, state, method, optimizer)
        first_step = state["step"]
        extended = note_extension(state["config"], config, settings.schedule, step=first_step)
        sessions = list(state["config"].get("sessions", []))
    config["sessions"] = [*sessions, session_origin(first_step)]
    method.before_training(paths)
    knn = OnlineKnn.from_settings(settings, components.backbone, world) if world.first else None
    values = start_values(components, folder, first_step)
    return _Start(components, config, optimizer, first_step, knn, extended, pull, values)


def _train(start: _Start, folder: Path, run_logger: RunLogger) -> RunResult:
    """Fit and export."""
    components, first_step = start.components, start.first_step
    settings, world, method = components.settings, components.world, components.method
    if settings.compile:
        for module in method.modules():
            if isinstance(module, Backbone):
                module.compile()  # in place: names in checkpoints stay
    _log_start(components, first_step, run_logger)
    if start.extended:
        run_logger.info(start.extended)
    if not kernels_are_compiled():  # here and announced, not in the workers before the first batch
        run_logger.info("compiling kernels, once")
        compile_kernels()
    few: list[Batch] = []

    def keep_a_few(batch: Batch) -> None:
        if world.first:
            save_views(folder, batch, components.backbone.inputs)
            few.append(batch.map_tensors(lambda value: value[:KEPT].clone()))

    hooks = Hooks(before_update=start.pull, after_step=method.after_step, on_first_batch=keep_a_few)
    if settings.channels_last:
        hooks = replace(hooks, prepare=_channels_last)
    run_first_pass(components, prepare=hooks.prepare, info=run_logger.info)
    if start.knn is not None:
        hooks = replace(hooks, validate=start.knn)
    result = fit(
        method,
        components.loader,
        start.optimizer,
        replace(loop_settings(components), start_values=start.start_values),
        world=world,
        hooks=hooks,
        run_logger=run_logger,
        folder=folder,
        config=start.config,
        first_step=first_step,
    )
    if result.step == components.context.total_steps:  # a signal in the last step has nothing left to stop
        result = replace(result, stopped_by=None)
    if world.first:
        export_backbone(components.backbone, folder / WEIGHTS, settings)
        if few:
            save_method_pictures(folder, method, few[0])
    _log_end(components, result, folder, run_logger)
    return RunResult(folder, result.step, components.context.total_steps, result.stopped_by, result.last)


def _build_optimizer(components: Components) -> torch.optim.Optimizer:
    """Move the method to its device and make the optimiser of its parameters there."""
    settings, world, method = components.settings, components.world, components.method
    method.to(world.device)
    if settings.channels_last:
        method.to(memory_format=torch.channels_last)
    by_stage = settings.layer_decay is not None or settings.pull is not None
    return build_optimizer(
        parameter_groups(components) if by_stage else method,
        settings.optimizer,
        batch_size=settings.batch_size,
        device=world.device,
    )


def export_backbone(backbone: Backbone, path: Path, settings: RunSettings) -> None:
    """Write the weights under the names of the library that loads them (torchvision, timm)."""
    about = {"arch": settings.arch, "method": settings.method, "hapicl": __version__, "format": "pt"}
    # what the file needs to be built again without the run folder around it
    about |= {"stem": backbone.stem, "image_size": str(settings.image_size), **backbone.inputs.as_texts()}
    write_safetensors(backbone.export_state(), path, about)


def _channels_last(batch: Batch) -> Batch:
    """Lay the views out as the convolutions read them; no copy where they already are."""
    batch.views = tuple(view.contiguous(memory_format=torch.channels_last) for view in batch.views)
    return batch


def _log_start(components: Components, first_step: int, run_logger: RunLogger) -> None:
    """Say what is about to be trained."""
    settings, context = components.settings, components.context
    optimizer, stem = settings.optimizer, components.backbone.stem
    workers = components.loader.workers
    run_logger.info(
        f"{settings.method} with {settings.arch} (stem {stem}) on {context.data_set_size} images"
        f"{_left_out(components.loader.selection)}, "
        f"{context.total_steps} steps of {settings.batch_size} ({context.steps_per_epoch} an epoch), "
        f"{device_name(components.world.device)} x {components.world.size}, "
        f"{workers} worker{'' if workers == 1 else 's'} each"
    )
    if components.weights is not None:
        run_logger.info(components.weights.line())
    if lines := restore_lines(stem):
        run_logger.info(
            f"the stem {stem} suits views of {settings.image_size} px; the weights load into torchvision's "
            f"{settings.arch} and give other features there, until you set {'; '.join(lines)}"
        )
    if components.switched_off:
        run_logger.info(
            f"images of {settings.in_channels} channels: {', '.join(components.switched_off)} of the "
            "augmentation assume RGB and are off"
        )
    if settings.freeze:
        run_logger.info(f"frozen: {', '.join(settings.freeze)}")
    run_logger.info(
        f"learning rate {optimizer.lr(settings.batch_size):.6g} = {optimizer.base_lr:g} x "
        f"{settings.batch_size} / 256 ({optimizer.name})"
    )
    if settings.grad_accum_steps > 1:
        run_logger.info(
            f"warning: grad_accum_steps={settings.grad_accum_steps} computes {settings.batch_size} samples "
            f"in parts of {components.micro_batch}: negatives and BatchNorm statistics come from that many, "
            "so a contrastive loss is not that of the whole batch"
        )
    device, precision = components.world.device, loop_settings(components).precision
    if precision == "bf16" and device.type == "cpu" and not computes_bf16():
        run_logger.info("warning: this processor imitates bf16, several times slower than precision=fp32")
    asked = round(settings.schedule.warmup_epochs * context.steps_per_epoch)
    warmup = warmup_steps(settings.schedule, context.total_steps, context.steps_per_epoch)
    if warmup < asked:
        run_logger.info(f"warning: the warm-up of {asked} steps is cut to {warmup}, half of this run")
    if first_step:
        run_logger.info(f"continuing at step {first_step}")


def _left_out(selection: Selection) -> str:
    """How many images of the folder are not trained on, and why, in brackets; nothing if all are."""
    reasons = [
        f"{count} {reason}"
        for count, reason in (
            (selection.left_out, "without a mask or unreadable"),
            (selection.low_confidence, "whose mask is flagged low_confidence"),
        )
        if count
    ]
    return f" (left out: {', '.join(reasons)})" if reasons else ""


def _log_end(components: Components, result: FitResult, folder: Path, run_logger: RunLogger) -> None:
    """Say where the results are and what comes next."""
    if result.stopped_by is None:
        run_logger.info(f"done: {folder / WEIGHTS}; look at it with `hapicl report {folder}`")
    else:
        run_logger.info(
            f"stopped after step {result.step} of {components.context.total_steps}; continue with the same "
            "command and --resume auto"
        )


class _Relay(logging.Handler):
    """Passes our modules' warnings to the run logger, and those before it was opened once it is."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._waiting: list[str] = []
        self._write: Callable[[str], None] | None = None

    def open(self, write: Callable[[str], None]) -> None:
        """Give what has waited and all that follows to `write`."""
        self._write = write
        for text in self._waiting:
            write(text)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one warning."""
        warning = record.levelno >= logging.WARNING
        text = f"{record.levelname.lower()}: {record.getMessage()}" if warning else record.getMessage()
        if self._write is None:
            self._waiting.append(text)
        else:
            self._write(text)


@contextmanager
def _relayed_warnings() -> Iterator[_Relay]:
    """Send warnings of our own modules to the run logger while a run lasts."""
    relay, logger = _Relay(), logging.getLogger("hapicl")
    logger.addHandler(relay)
    before, logger.propagate = (logger.propagate, logger.level), False
    logger.setLevel(logging.INFO)  # what a method decides by itself (a queue's length) is worth a line
    try:
        yield relay
    finally:
        logger.propagate, level = before
        logger.setLevel(level)
        logger.removeHandler(relay)

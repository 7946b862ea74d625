"""One round of learning: the engine fits a network to masks, resumable; a running average is kept.

Shape legend: B images, S side of the square input, P parameters.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...common.errors import UserError
from ...common.system.processor import computes_bf16
from ...engine.checkpoint import LAST, load_checkpoint, restore
from ...engine.distributed import World
from ...engine.interfaces import FitResult, Hooks, LoopSettings
from ...engine.loggers.run_logger import RunLogger
from ...engine.loop import fit
from ...engine.optimizers import OptimizerSettings, build_optimizer
from ...engine.schedule import ScheduleSettings
from ...models.backbones.base import require_photographs
from ...models.weights import load_backbone
from .network import BackboneEncoder, ForegroundNetwork, StagesEncoder
from .samples import FirstMasks, SampleBatch, SampleSource
from .settings import RefineSettings

WARMUP = 0.1  # of the steps
AVERAGE_MOMENTUM = 0.999  # of the running average of the weights, which is what predicts
ENCODER_LR = 0.3  # of the learning rate, for an encoder that starts from weights
LINES = 20  # of numbers in a round's log
CHECKPOINT_STEPS = 250


@dataclass
class Fitted:
    """What the loop asks of a batch's result."""

    loss: Tensor
    loss_terms: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None
    references: dict[str, float] = field(default_factory=dict)


class Learner(nn.Module):
    """The network, its loss, and the average of its weights over the last steps."""

    def __init__(self, network: ForegroundNetwork) -> None:
        super().__init__()
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(requires_grad=False).eval()

    def forward(self, batch: SampleBatch) -> Fitted:
        """Cross-entropy plus Dice of a batch, each image by its weight."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        logits = self.network(images).float()
        entropy, dice = mask_losses(logits, batch.masks, batch.weights)
        return Fitted(entropy + dice, {"entropy": entropy, "dice": dice})

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Move the average; over the first steps it follows faster."""
        momentum = min(AVERAGE_MOMENTUM, (1 + step) / (10 + step))
        pairs = zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
        for kept, new in pairs:
            if kept.is_floating_point():
                kept.lerp_(new, 1 - momentum)
            else:
                kept.copy_(new)
        return {}


def mask_losses(logits: Tensor, masks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and soft Dice loss (Milletari et al., 3DV 2016, squared form), weighted means.

    Args:
        logits: (B, 1, S, S).
        masks: (B, 1, S, S) in [0, 1].
        weights: (B,), at least one above 0.

    Returns:
        Two scalars; each image's terms count by its weight.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2, 3))
    likely = logits.sigmoid()
    common = 2 * (likely * masks).sum((1, 2, 3)) + 1
    both = (likely**2).sum((1, 2, 3)) + (masks**2).sum((1, 2, 3)) + 1
    dice = 1 - common / both
    total = weights.sum()
    return (entropy * weights).sum() / total, (dice * weights).sum() / total


def new_network(settings: RefineSettings, seed: int) -> ForegroundNetwork:
    """Build the network that the settings name; its random weights depend on the seed alone.

    Raises:
        UserError: for an encoder's weights that cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.encoder is None:
            return ForegroundNetwork(StagesEncoder(settings.width))
        backbone, info = load_backbone(settings.encoder, image_size=settings.image_size)
        require_photographs(backbone, "masks refine --encoder")
        return ForegroundNetwork(BackboneEncoder(backbone.train(), info.arch))


def encoder_digest(settings: RefineSettings) -> str | None:
    """SHA-256 of the weights that the encoder starts from; None from scratch.

    Raises:
        UserError: for weights that are not there or cannot be used, before any image is read.
    """
    if settings.encoder is None:
        return None
    return load_backbone(settings.encoder, image_size=settings.image_size)[1].sha256


def steps_of_epochs(settings: RefineSettings, images: int) -> int:
    """Steps in which a round of so many images sees each of them `epochs` times."""
    return settings.epochs * (images // min(settings.batch_size, images))


def train_round(
    first: FirstMasks,
    settings: RefineSettings,
    *,
    start: ForegroundNetwork,
    device: torch.device,
    folder: Path,
    config: dict[str, Any],
    seed: int,
    least_steps: int,
    show: bool,
) -> tuple[ForegroundNetwork, FitResult]:
    """Fit a network to masks, going on from the folder's checkpoint if there is one.

    Args:
        first: what to learn from.
        settings: how.
        start: the network before the first step.
        device: where.
        folder: of this round; checkpoints and logs go there.
        config: what the round depends on; a checkpoint of another one is refused.
        seed: of this round's draws.
        least_steps: of this round, however few the images.
        show: whether progress goes to the terminal.

    Returns:
        The averaged network, on the CPU in eval mode, and how the fit ended.

    Raises:
        UserError: if the checkpoint is of another training.
    """
    learner = Learner(start).to(device)
    learner.to(memory_format=torch.channels_last)
    source = SampleSource(
        first, batch_size=settings.batch_size, least_weight=settings.least_weight, seed=seed, device=device
    )
    optimizer = build_optimizer(
        _groups(learner.network, pretrained=settings.encoder is not None),
        OptimizerSettings(name="adamw", base_lr=settings.base_lr, weight_decay=settings.weight_decay),
        batch_size=source.batch_size,
        device=device,
    )
    step = _resume(folder / LAST, config, learner, optimizer)
    total = max(least_steps, steps_of_epochs(settings, len(first)))
    loop = _loop_settings(settings, total, source.steps_per_epoch, device=device, seed=seed)
    with RunLogger(folder, total=loop.total_steps, resumed_step=step, show=show) as run_logger:
        if step:
            run_logger.info(f"continuing at step {step}")
        result = fit(
            learner,
            source,
            optimizer,
            loop,
            world=World(device=device),
            hooks=Hooks(after_step=learner.after_step),
            run_logger=run_logger,
            folder=folder,
            config=config,
            first_step=step,
        )
    return learner.average.cpu().eval(), result


def _loop_settings(
    settings: RefineSettings, total: int, steps_per_epoch: int, *, device: torch.device, seed: int
) -> LoopSettings:
    """How a round of `total` steps runs."""
    return LoopSettings(
        total_steps=total,
        schedule=ScheduleSettings(warmup_epochs=WARMUP * total / steps_per_epoch),
        clip_norm=1.0,
        precision=choose_precision(settings, device),
        log_every=max(1, total // LINES),
        checkpoint_every=CHECKPOINT_STEPS,
        seed=seed,
    )


def _groups(network: ForegroundNetwork, *, pretrained: bool) -> list[dict[str, Any]]:
    """Parameters of the encoder, slower where it starts from weights, and of the rest."""
    encoder = list(network.encoder.parameters())
    inside = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    return [{"params": encoder, "lr_scale": ENCODER_LR if pretrained else 1.0}, {"params": rest}]


def _resume(
    checkpoint: Path, config: dict[str, Any], learner: Learner, optimizer: torch.optim.Optimizer
) -> int:
    """Take up a checkpoint if there is one; returns the steps done."""
    if not checkpoint.exists():
        return 0
    state = load_checkpoint(checkpoint)
    if state["config"] != config:
        raise UserError(
            f"{checkpoint} is of a refinement with other settings or other first masks; give the same "
            f"command as then, or delete {checkpoint.parent.parent} to start anew"
        )
    restore(checkpoint, state, learner, optimizer)
    return int(state["step"])


def choose_precision(settings: RefineSettings, device: torch.device) -> str:
    """bf16 where the device computes in it, else fp32; what the settings say goes first."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if device.type == "cpu" and computes_bf16() else "fp32"

"""Optimisers and learning-rate schedules: SGD, LARS, AdamW; cosine, steps or constant, after a warm-up.

All three run torch's fused kernels where the device has them. Those kernels read `found_inf` on the
device and then change nothing, which is how a bad step is stopped without waiting for the device (see
`guard.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..common.config import NotNegative, Positive, Settings

FUSED_DEVICES = ("cpu", "cuda")
BelowOne = Annotated[float, Field(ge=0, lt=1)]  # a decay of what is remembered


class OptimizerSettings(Settings):
    """One optimiser; its rate is stated for 256 samples and grows with the global batch (Goyal 2017)."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    base_lr: Annotated[float, Field(gt=0, le=1e12)] = 0.03  # for 256 samples
    momentum: BelowOne = 0.9  # sgd and lars
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # adamw
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8  # adamw
    trust: Positive = 1e-3  # lars: trust coefficient (You et al., arXiv 1708.03888)
    weight_decay: NotNegative = 1e-4
    # weight decay on biases and norms (1-D); None: as each is published, sgd yes (MoCo), lars and adamw no
    decay_one_dimensional: bool | None = None
    clip_norm: Positive | None = None  # total gradient norm is cut to this
    fused: bool = True  # False: the foreach form, only for comparing speed; a bad step is then not masked

    @property
    def decays_one_dimensional(self) -> bool:
        """Whether biases and norms are decayed."""
        return self.name == "sgd" if self.decay_one_dimensional is None else self.decay_one_dimensional

    def lr(self, batch_size: int) -> float:
        """Peak learning rate for a global batch."""
        return self.base_lr * batch_size / 256


class LARS(torch.optim.SGD):
    """SGD whose adapted groups scale each gradient by |w| / |g + decay w| (You et al., arXiv 1708.03888).

    Groups carry `adapt` (False: plain SGD, for biases and norms) and `adapted_decay`. Agrees with timm's
    `Lars`, which updates tensor by tensor and has no masked update; here norms and scales are foreach,
    the update fused.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Scale the gradients of adapted groups in place, then update as SGD with momentum."""
        for group in self.param_groups:
            if group["adapt"]:
                self._adapt(group)
        loss: float | None = super().step(closure)
        return loss

    def _adapt(self, group: dict[str, Any]) -> None:
        parameters = [value for value in group["params"] if value.grad is not None]
        if not parameters:
            return
        gradients = [value.grad for value in parameters]
        decay, trust = group["adapted_decay"], group["trust"]
        weight_norm = torch.stack(torch._foreach_norm(parameters))
        gradient_norm = torch.stack(torch._foreach_norm(gradients))
        ratio = trust * weight_norm / (gradient_norm + decay * weight_norm + 1e-8)
        # a zero weight or gradient is updated as it is, as timm and Apex do
        ratio = torch.where((weight_norm > 0) & (gradient_norm > 0), ratio, 1.0)
        if decay:
            torch._foreach_add_(gradients, parameters, alpha=decay)
        torch._foreach_mul_(gradients, list(ratio.unbind()))


def build_optimizer(
    module: nn.Module | Iterable[dict[str, Any]],
    settings: OptimizerSettings,
    *,
    batch_size: int,
    device: torch.device,
) -> torch.optim.Optimizer:
    """Build an optimiser over what requires a gradient.

    Args:
        module: a module, split into a group of weights (2-D and more) and one of biases and norms (1-D); or
            parameter groups ({"params": ..., "lr_scale": 0.1, ...}), each split the same way, whose rate is
            multiplied by `lr_scale` and whose decay may be another (`weight_decay`).
        settings: which, and its numbers.
        batch_size: global, for the learning rate.
        device: where the parameters are.

    Returns:
        An optimiser whose groups carry `peak_lr`; `set_lr` moves all by one factor.
    """
    given = [{"params": list(module.parameters())}] if isinstance(module, nn.Module) else list(module)
    peak = settings.lr(batch_size)
    groups = [part for group in given for part in _split(group, settings, peak)]
    fused = settings.fused and device.type in FUSED_DEVICES
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=peak, betas=settings.betas, eps=settings.eps, fused=fused)
    kind = LARS if settings.name == "lars" else torch.optim.SGD
    return kind(groups, lr=peak, momentum=settings.momentum, fused=fused, foreach=None if fused else True)


def _split(group: dict[str, Any], settings: OptimizerSettings, peak: float) -> list[dict[str, Any]]:
    """Split one group into weights and 1-D parameters with their decay; empty ones are left out."""
    trained = [value for value in group["params"] if value.requires_grad]
    rate = peak * group.get("lr_scale", 1.0)
    halves = []
    for many, values in (
        (True, [value for value in trained if value.ndim > 1]),
        (False, [value for value in trained if value.ndim <= 1]),
    ):
        asked = float(group.get("weight_decay", settings.weight_decay))
        decay = asked if many or settings.decays_one_dimensional else 0.0
        half = {"params": values, "lr": rate, "peak_lr": rate, "weight_decay": decay}
        if settings.name == "lars":
            # the decay of an adapted group goes into its ratio, not into SGD's own term
            half |= {"adapt": many, "trust": settings.trust, "adapted_decay": decay if many else 0.0}
            half["weight_decay"] = 0.0 if many else decay
        if values:
            halves.append(half)
    return halves


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its peak times `factor`; returns the first group's rate, for the run logger."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def mask_updates(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> bool:
    """Have the fused kernels skip every update while `found_inf` (a float scalar on the device) is not 0.

    This is the attribute that torch's GradScaler sets for fused optimisers.

    Returns:
        False where the optimiser is not fused and cannot be masked.
    """
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]
    return True

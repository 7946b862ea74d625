"""What a run that starts from weights does besides: rates by depth, and a pull towards the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..engine.health import StartWatch
from ..engine.run_logger import read_metrics
from ..models.backbones.base import Backbone
from .components import Components


def parameter_groups(components: Components) -> list[dict[str, Any]]:
    """Parameters as the optimiser takes them: heads and the like, then the backbone, stage by stage.

    With `layer_decay` d, stage i of n (from 0, at the image) trains at d to the power of n - 1 - i of the
    rate, as in MAE's fine-tuning (arXiv 2111.06377, table 9): the last stage and the heads at the whole of
    it. With `pull` the backbone has no weight decay, which would pull it elsewhere.
    """
    settings, backbone = components.settings, components.backbone
    change = {} if settings.pull is None else {"weight_decay": 0.0}
    decay = 1.0 if settings.layer_decay is None else settings.layer_decay
    stages = [_parameters(parts) for parts in backbone.stages().values()]
    groups = [
        {"params": values, "lr_scale": decay ** (len(stages) - 1 - number), **change}
        for number, values in enumerate(stages)
    ]
    staged = {id(value) for values in stages for value in values}
    own = [value for value in backbone.parameters() if id(value) not in staged]
    mine = staged | {id(value) for value in own}
    rest = [value for value in components.method.parameters() if id(value) not in mine]
    return [{"params": rest}, {"params": own, **change}, *groups]


def _parameters(parts: list[nn.Module | nn.Parameter]) -> list[nn.Parameter]:
    """Every parameter of a stage."""
    return [
        value for part in parts for value in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    ]


class Pull:
    """Adds strength * (w - start) to the gradient of every weight of a backbone: L2-SP.

    It is the gradient of strength / 2 * |w - start|^2 (Li et al., arXiv 1802.01483), which pulls towards the
    start where weight decay pulls towards 0. Called between clipping and the update.

    Args:
        backbone: at its start, on the device.
        strength: alpha of the paper.
    """

    def __init__(self, backbone: Backbone, strength: float) -> None:
        self._strength = strength
        self._weights = [value for value in backbone.parameters() if value.requires_grad]
        self._start = [value.detach().clone() for value in self._weights]

    @torch.no_grad()
    def __call__(self) -> None:
        """Change the gradients in place; weights without one are left alone."""
        pairs = [
            (value.grad, value, start)
            for value, start in zip(self._weights, self._start, strict=True)
            if value.grad is not None
        ]
        if not pairs:
            return
        gradients, weights, starts = (list(values) for values in zip(*pairs, strict=True))
        distance = torch._foreach_sub(weights, starts)
        torch._foreach_add_(gradients, distance, alpha=self._strength)


def start_values(components: Components, folder: Path, first_step: int) -> dict[str, float] | None:
    """What the run's first rows say of the numbers that should not fall; None for random weights.

    Args:
        components: the run.
        folder: its run folder.
        first_step: optimiser steps done before.
    """
    if components.weights is None:
        return None
    found: dict[str, float] = {}
    for line in read_metrics(folder) if first_step else ():
        for name in StartWatch.WATCHED:
            if name in line and line["step"] <= first_step:  # later ones are of a session that was lost
                found.setdefault(name, line[name])
    return found

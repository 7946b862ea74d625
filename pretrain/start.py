"""What a run that starts from weights does besides: rates by depth, and pulls towards the start.

Shape legend: B images, C channels, S map cells per side, N tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.health import StartWatch
from ..engine.loggers.run_files import read_metrics
from ..models.backbones.base import Backbone
from ..models.stage_rates import stage_groups
from .components import Components
from .config.settings import Compared
from .losses.common import l2_normalize
from .methods.base import Method, Output


def parameter_groups(components: Components) -> list[dict[str, Any]]:
    """Parameters as the optimiser takes them: heads and the like, then the backbone, stage by stage.

    With `layer_decay` the rate falls from the last stage to the first (see `stage_groups`); the heads train
    at the whole of it. With `pull` the backbone has no weight decay, which would pull it elsewhere.
    """
    settings, backbone = components.settings, components.backbone
    change = {} if settings.pull is None else {"weight_decay": 0.0}
    decay = 1.0 if settings.layer_decay is None else settings.layer_decay
    groups = [group | change for group in stage_groups(backbone, decay)]
    mine = {id(value) for group in groups for value in group["params"]}
    rest = [value for value in components.method.parameters() if id(value) not in mine]
    return [{"params": rest}, *groups]


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


class FeaturePull:
    """Adds strength * |f / |f| - f0 / |f0||^2 to a method's loss, f0 being the starting network's features.

    Distillation from the start itself, against forgetting, as in Learning without Forgetting (Li and Hoiem,
    arXiv 1606.09282), here of features, since there are no labels. Every map that the backbone computes with
    a gradient is compared, cell by cell or averaged, with what a frozen copy of the start makes of the same
    pixels. The copy normalises as the backbone does, by the batch where that does, so the term is 0 at first.

    Args:
        method: on the device; its result gets the term. Names in its checkpoints stay, and the copy is none
            of its parts: a run that goes on has it from the weights again.
        backbone: the method's, at its start.
        strength: weight of the term, which lies between 0 and 4.
        compared: `map`: the mean over all cells (of a ViT: tokens); `pooled`: of their mean.
    """

    def __init__(self, method: Method, backbone: Backbone, strength: float, compared: Compared) -> None:
        self._start = copy.deepcopy(backbone).requires_grad_(False)
        self._backbone, self._strength, self._compared = backbone, strength, compared
        self._distances: list[Tensor] = []
        backbone.watch(self._watch)
        method.register_forward_pre_hook(lambda *_: self._distances.clear())
        method.register_forward_hook(self._add)

    def _watch(self, compute: Callable[[Backbone], Tensor], features: Tensor) -> None:
        """Take in what the backbone has computed; `compute` lets the copy do the same."""
        if not (torch.is_grad_enabled() and features.requires_grad):
            return
        self._start.train(self._backbone.training)
        with torch.no_grad():
            wanted = compute(self._start)
        self._distances.append(feature_distance(features, wanted, self._compared))

    def _add(self, method: nn.Module, arguments: tuple[Any, ...], output: Output) -> None:
        """Add the mean over what was computed in this step."""
        if self._distances:
            distance = torch.stack(self._distances).mean()
            output.loss = output.loss + self._strength * distance
            output.loss_terms = {**output.loss_terms, "feature_pull": distance.detach()}
            self._distances.clear()


def feature_distance(features: Tensor, wanted: Tensor, compared: Compared) -> Tensor:
    """Mean squared distance of unit vectors, a scalar in [0, 4].

    Args:
        features, wanted: maps (B, C, S, S), or tokens (B, N, C).
        compared: whether cells or tokens are compared one by one, or their mean.
    """
    rows, targets = (
        values.flatten(2).transpose(1, 2) if values.ndim == 4 else values for values in (features, wanted)
    )
    if compared == "pooled":
        rows, targets = rows.mean(1), targets.mean(1)
    difference: Tensor = l2_normalize(rows, dim=-1) - l2_normalize(targets, dim=-1)
    return difference.square().sum(-1).mean()


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

"""A network's parameters in groups whose learning rates fall from its last stage to its first."""

from __future__ import annotations

from typing import Any

from torch import nn

from .backbones.base import Backbone


def stage_groups(backbone: Backbone, decay: float) -> list[dict[str, Any]]:
    """Parameters of a backbone as an optimiser takes them: those of no stage, then stage by stage.

    Stage i of n (from 0, at the image) trains at `decay` to the power of n - 1 - i of the rate, as in MAE's
    fine-tuning (arXiv 2111.06377, table 9): the last stage at the whole of it.

    Returns:
        Groups {"params": ..., "lr_scale": ...}.
    """
    stages = [_parameters(parts) for parts in backbone.stages().values()]
    groups: list[dict[str, Any]] = [
        {"params": values, "lr_scale": decay ** (len(stages) - 1 - number)}
        for number, values in enumerate(stages)
    ]
    staged = {id(value) for values in stages for value in values}
    rest = [value for value in backbone.parameters() if id(value) not in staged]
    return [{"params": rest}, *groups]


def fine_tuning_groups(model: nn.Module, backbone: Backbone, decay: float) -> list[dict[str, Any]]:
    """Parameters of a model on a backbone: new layers at the whole rate, the backbone's by `stage_groups`.

    A ViT's class token and positions get no weight decay, as in BEiT's, MAE's and ViTDet's fine-tuning.

    Args:
        model: holds the backbone's parameters, and others.
        backbone: what it was built on.
        decay: of the rate from a stage to the one before it; 1 trains all alike.
    """
    kept = {id(value) for value in backbone.embeddings()}
    groups = []
    for group in stage_groups(backbone, decay):
        weights = [value for value in group["params"] if id(value) not in kept]
        embeddings = [value for value in group["params"] if id(value) in kept]
        groups += [{**group, "params": weights}, {**group, "params": embeddings, "weight_decay": 0.0}]
    own = {id(value) for value in backbone.parameters()}
    return [{"params": [value for value in model.parameters() if id(value) not in own]}, *groups]


def _parameters(parts: list[nn.Module | nn.Parameter]) -> list[nn.Parameter]:
    """Every parameter of a stage."""
    return [
        value for part in parts for value in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    ]

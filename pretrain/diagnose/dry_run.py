"""`hapicl pretrain --dry-run`: what a run would be, without training."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from ...engine.batchnorm import buffers_kept, one_group
from ...engine.distributed import processes
from ...models.backbones.base import Backbone
from ..components import Components, assemble, describe, loop_settings
from ..config.settings import RunSettings

PROBE = 2  # images run through the backbone to measure what a step keeps


def dry_run_report(settings: RunSettings) -> str:
    """Describe the run: resolved settings, parameters, views, estimated memory.

    Raises:
        UserError: for the mistakes that a real run would meet at its start.
    """
    with processes(settings.device) as world:
        components = assemble(settings, world)
        with components.loader:
            content = describe(components)
            counts = content.pop("needs")
            views = len(components.needs.views) + (1 if components.needs.jigsaw else 0)
            jigsaw = [counts["jigsaw"]] if counts["jigsaw"] else []
            sizes = ", ".join(str(view["size"]) for view in counts["views"] + jigsaw)
            lines = [
                json.dumps(content, indent=2),
                f"parameters: {_millions(components.method)} M in all, {_millions(components.backbone)} M in "
                f"the backbone, {_millions(components.method, trained=True)} M trained",
                f"views per sample: {views} of {sizes} px; views per step: {views * settings.batch_size}",
                f"masks: {'grid ' + str(components.needs.grid) if components.needs.masks else 'not read'}",
                f"estimated memory per process: {estimated_memory(components) / 2**30:.2f} GiB (weights, "
                "gradients, optimiser, buffers, and what the backbone keeps of the views for the backward; "
                "heads and workspaces come on top)",
            ]
    return "\n".join(lines)


def estimated_memory(components: Components) -> int:
    """Bytes of one process: state of the method and optimiser, and the backbone's saved activations.

    The activations are counted on two images and scaled; every view is taken to be trained, which is an
    upper bound for methods whose keys carry no gradient.
    """
    method, settings = components.method, components.settings
    trained = sum(
        value.numel() * value.element_size() for value in method.parameters() if value.requires_grad
    )
    held = sum(value.numel() * value.element_size() for value in [*method.parameters(), *method.buffers()])
    slots = 2 if settings.optimizer.name == "adamw" else 1
    local_batch = components.micro_batch // components.world.size
    sides = [view.size for view in components.needs.views]
    if components.needs.jigsaw is not None:
        sides += [components.needs.jigsaw.patch] * components.needs.jigsaw.grid**2
    probed = {side: activation_bytes(components.backbone, side) for side in set(sides)}
    kept = sum(probed[side] for side in sides) * local_batch / PROBE
    halved = 0.5 if loop_settings(components).precision == "bf16" else 1.0
    return int(held + trained * (1 + slots) + kept * halved)


def activation_bytes(backbone: Backbone, size: int) -> int:
    """Bytes that autograd keeps of `PROBE` blank images of `size` pixels, float32."""
    kept: dict[int, int] = {}
    weights = {value.data_ptr() for value in backbone.parameters()}

    def note(value: Tensor) -> Tensor:
        if value.data_ptr() not in weights:
            kept[value.data_ptr()] = value.numel() * value.element_size()
        return value

    was_training = backbone.training
    backbone.train()
    # two images do not split into the BatchNorm groups of a batch, and keep as much in one group
    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda value: value)
    with one_group(backbone), buffers_kept(backbone), saved:
        device = next(backbone.parameters()).device
        maps = backbone(torch.zeros(PROBE, backbone.in_channels, size, size, device=device))
    del maps
    backbone.train(was_training)
    return sum(kept.values())


def _millions(module: torch.nn.Module, *, trained: bool = False) -> str:
    """Parameters in millions."""
    count = sum(value.numel() for value in module.parameters() if value.requires_grad or not trained)
    return f"{count / 1e6:.2f}"

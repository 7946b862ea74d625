"""Dropout and the like in several processes: drawn for the whole batch, of which each takes its part.

So a training drops the same values whatever the number of processes, given that all of them seed torch alike
(`LoopSettings.draw_alike`). With one process nothing is replaced: torch's own layers draw just so.
Shape legend: B samples of this process, W processes.
"""

from __future__ import annotations

from typing import Literal

from timm.layers.drop import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..engine.distributed import local_slice, world_size

Unit = Literal["value", "channel", "sample"]


class GlobalDropout(nn.Module):
    """Drops values, channels or samples with a probability, and enlarges what stays."""

    def __init__(self, probability: float, unit: Unit, *, enlarge: bool = True) -> None:
        """Take the probability and what is dropped as a whole."""
        super().__init__()
        self.probability, self.unit, self.enlarge = probability, unit, enlarge

    def forward(self, values: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training or not self.probability:
            return values
        whole = {"value": values.dim(), "channel": 2, "sample": 1}[self.unit]  # axes drawn for
        drawn = [size if axis < whole else 1 for axis, size in enumerate(values.shape)]
        stays = 1 - self.probability
        kept = values.new_empty([world_size() * drawn[0], *drawn[1:]]).bernoulli_(stays)
        if self.enlarge and stays:
            kept.div_(stays)
        return values * local_slice(kept)


def draw_for_all(module: nn.Module) -> None:
    """Put `GlobalDropout` in the place of torch's, timm's and torchvision's layers that drop, in place."""
    if world_size() == 1:
        return
    for name, child in module.named_children():
        replaced = _replacement(child)
        if replaced is None:
            draw_for_all(child)
        else:
            setattr(module, name, replaced.train(child.training))


def _replacement(layer: nn.Module) -> GlobalDropout | None:
    """What stands for a layer; None for one that does not drop.

    One that is off stays: timm's attention reads the probability off its layer.
    """
    if isinstance(layer, nn.Dropout) and not layer.p:
        return None
    if isinstance(layer, nn.Dropout):
        return GlobalDropout(layer.p, "value")
    if isinstance(layer, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return GlobalDropout(layer.p, "channel")
    if isinstance(layer, DropPath):
        return GlobalDropout(layer.drop_prob or 0.0, "sample", enlarge=layer.scale_by_keep)
    if isinstance(layer, StochasticDepth) and layer.mode == "row":
        return GlobalDropout(layer.p, "sample")
    return None

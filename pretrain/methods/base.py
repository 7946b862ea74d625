"""What every method is: a module with a config, its needs, one step and what follows the optimiser's update.

The trainer knows methods only through this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from ...common.types import Pixels
from ...data.loading.batch import Batch, Needs
from ...models.backbones.base import Backbone, Vector


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a method may know of the run around it."""

    data_set_size: int
    batch_size: int  # global: over all processes, one optimiser step
    total_steps: int
    steps_per_epoch: int
    seed: int = 0


@dataclass(kw_only=True)
class Output:
    """Result of one step, all tensors still on the device (the loop never waits for them).

    `loss` is what is differentiated. `loss_terms` are its terms without their weights, logged as `loss/NAME`;
    `metrics` is whatever else is logged, under names grouped by slash (`similarity/positive`); all scalars.
    `embeddings` are (B, D) or (N, D) rows whose spread shows collapse. `references` give the closed form of
    a term or metric at chance level (log(K + 1) and so on) by its name, logged as `chance/NAME`.
    """

    loss: Tensor
    loss_terms: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    embeddings: Tensor | None = None
    references: dict[str, float] = field(default_factory=dict)


class Method(nn.Module):
    """Base of every method.

    A subclass sets `name`, `source` (paper), `Config` (a frozen keyword-only dataclass whose numbers carry
    their source), builds its modules in `__init__(config, context, backbone)`, and keeps the trained,
    exported network in `self.backbone` and the config, with what was left open settled, in `self.config`.
    Whatever must survive a restart is a parameter or a buffer: queues, pointers, banks, EMA copies.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    # what stands for an image in kNN and linear probes, the headline's first: `mean` over the cells of the
    # last map (of a ViT: the mean patch token), or a ViT's `class` token; ResNets have their mean only
    evaluation_vectors: ClassVar[tuple[Vector, ...]] = ("mean",)
    Config: ClassVar[type[Any]]

    backbone: nn.Module
    config: Any  # an instance of `Config`

    @classmethod
    def needs(cls, config: Any, backbone: Backbone, *, image_size: int) -> Needs:
        """State what a batch must hold.

        Args:
            config: an instance of `Config`; it holds the method's own crop scale and photometric policy.
            backbone: tells how many cells its maps have (`cells_per_side`).
            image_size: side of the views, pixels.
        """
        raise TypeError(f"{cls.__name__} does not state its needs")

    def step(self, batch: Batch) -> Output:
        """Compute the loss of one batch of augmented views. Changes no parameter; reads and writes queues."""
        raise TypeError(f"{type(self).__name__} has no step")

    def forward(self, batch: Batch) -> Output:
        """Same as `step`: the name under which DistributedDataParallel sees it."""
        return self.step(batch)

    def before_training(self, index_paths: list[str]) -> None:
        """Run once before the first step (also after a resume): banks check their paths here."""

    def first_pass_needs(self, needs: Needs) -> Needs | None:
        """State what a batch of the pass over all images before the first step holds; None: no such pass.

        Args:
            needs: of a step, as `needs` stated them.
        """
        return None

    def first_pass(self, batch: Batch) -> None:
        """Take in one batch of that pass; called without gradient, in train mode."""

    def end_first_pass(self) -> None:
        """Remember, in a buffer, that every image has been taken in."""

    def pictures(self, batch: Batch) -> dict[str, Pixels]:
        """Draw what the method has learnt on a few samples, for the run's report; changes nothing.

        Called in eval mode, on the first process only, so it may not wait for other processes.

        Args:
            batch: a few augmented samples.

        Returns:
            (H, W, 3) uint8 pictures by the sentence under which the report shows them; none by default.
        """
        return {}

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Run after the optimiser's update number `step` (from 0) of `total`: EMA and schedules.

        Returns:
            Numbers worth logging (such as the EMA momentum), known on the host.
        """
        return {}

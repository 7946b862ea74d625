"""DenseCL (Wang et al., arXiv 2011.09157): MoCo v2 with a second, dense contrast of matched cells.

Written from the paper; nothing here follows the original code. Shape legend: B images of this process,
C map channels, D embedding, S cells per side, P = S*S, K queue entries.
"""

from __future__ import annotations

import logging
import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...common.config import CountOrZero, Fraction
from ...common.errors import UserError
from ...data.loading.batch import Batch, Needs
from ...models.backbones.base import Backbone
from ...models.heads import dense_projection_head, global_average_pool
from ..losses import cell_labels, dense_info_nce, match_cells
from ..modules.matches import cell_distance, mutual, nearest_cells
from ..modules.memory import Queue
from ..modules.momentum import encode_shuffled, make_momentum_encoder
from .base import Context, Output
from .moco_v2 import MoCoConfig, MomentumContrast, instance_output

logger = logging.getLogger(__name__)

WARM_UP_STEPS = 10_000  # steps with lambda 0, section 3.4
WARM_UP_SHARE = 0.05  # of a short run, this project's
LARGEST_GRID = 128  # its matches are a matrix of 16,384 x 16,384 for each image


class DenseCLConfig(MoCoConfig):
    """DenseCL as published; `matching=foreground` is this project's own.

    The released configs register no hook for the warm-up of lambda, so nothing of it happens there; the
    hook's own default is 1,000 steps, the paper's text says 10,000.
    """

    lambda_dense: Fraction = 0.5  # section 4.4
    warm_up_steps: CountOrZero | None = None  # None: 10,000, but at most 5 % of the run
    matching: Literal["backbone", "geometry", "head", "foreground"] = "backbone"
    # cells per side of the dense contrast; None: the map's own
    grid: Annotated[int, Field(ge=2, le=LARGEST_GRID)] | None = None
    foreground_threshold: Fraction = 0.5  # for matching=foreground


class DenseCL(MomentumContrast):
    """MoCo v2 with a global and a dense head, each with its queue."""

    name = "densecl"
    source = (
        "Wang et al., Dense Contrastive Learning for Self-Supervised Visual Pre-Training, arXiv 2011.09157"
    )
    Config: ClassVar[type[DenseCLConfig]] = DenseCLConfig
    config: DenseCLConfig
    steps_done: Tensor

    @classmethod
    def needs(cls, config: DenseCLConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views of one policy; masks only for matching within the mask labels, without redraws."""
        grid = config.grid or backbone.cells_per_side(image_size)
        if grid < 2:
            raise UserError(
                f"DenseCL matches cells, but --image-size {image_size} leaves a map of 1 x 1; with stride 32 "
                "use 128 pixels (4 x 4), or a stem of smaller stride"
            )
        return Needs(
            views=config.views(image_size),
            grid=grid if config.matching == "foreground" else None,
            min_foreground=0.0,
        )

    def __init__(self, config: DenseCLConfig, context: Context, backbone: Backbone) -> None:
        """Build what MoCo v2 has, then the dense heads and their queue."""
        super().__init__(config, context, backbone)
        width, length = backbone.channels[backbone.last], len(self.queue.rows)
        self.dense_head = dense_projection_head(width, config.hidden or width, config.dim, batch_norm=False)
        self.key_dense_head = make_momentum_encoder(self.dense_head)
        self.followed.append((self.key_dense_head, self.dense_head))
        self.dense_queue = Queue(length, config.dim, seed=context.seed, purpose="dense queue")
        self.warm_up = warm_up_steps(config, context.total_steps)
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        logger.info(
            "queue of %d keys; lambda is 0 for the first %d of %d steps, then %g",
            length,
            self.warm_up,
            context.total_steps,
            config.lambda_dense,
        )

    def build_head(self, width: int) -> nn.Sequential:
        """MoCo v2's head, with Kaiming's normal draw and zero biases as in the authors' code.

        That code draws linear layers so, and leaves the convolutions of the dense head at torch's default.
        With lambda 0 the method is MoCo v2 bit for bit, so the draw is MoCo v2's then.
        """
        head = super().build_head(width)
        if self.config.lambda_dense > 0:
            for layer in head:
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)
        return head

    def step(self, batch: Batch) -> Output:
        """Contrast images as MoCo v2 does and matched cells, one direction; then enqueue both keys."""
        (first, second), (here, there) = batch.views, batch.geometry
        features, query, dense = self.queries(first)
        key_features, key, key_dense, key_pooled = self.keys(second, batch)
        check_map(features)
        match = self.match(features, key_features, dense, key_dense, batch)
        instance = instance_output([(query, key)], self.queues, self.config.temperature)
        dense_loss = dense_info_nce(
            dense.flatten(2),
            key_dense.flatten(2),
            features.flatten(2),
            key_features.flatten(2),
            self.dense_queue.rows,
            temperature=self.config.temperature,
            match=match,
        )
        self.dense_queue.enqueue(key_pooled)
        instance.loss = self.weigh(instance.loss, dense_loss)
        back = self.match(key_features, features, key_dense, dense, batch, swapped=True)
        instance.loss_terms["dense"] = dense_loss.detach()
        instance.metrics |= {
            "dense/mutual_match_fraction": mutual(match, back).float().mean(),
            "dense/match_distance_cells": cell_distance(here, there, match, features.shape[-1]).mean(),
        }
        instance.references["dense"] = instance.references["instance"]
        return instance

    def weigh(self, instance: Tensor, dense: Tensor) -> Tensor:
        """(1 - lambda) * instance + lambda * dense; lambda on the device, so the host never waits."""
        weight = torch.where(self.steps_done < self.warm_up, 0.0, self.config.lambda_dense)
        return (1 - weight) * instance + weight * dense

    def queries(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, C, S, S), global (B, D) and dense (B, D, S, S) outputs, the last two with gradient."""
        features = self.backbone(images)[self.backbone.last]
        vectors = self.head(global_average_pool(features))
        features = self.regrid(features)
        return features.detach(), vectors, self.dense_head(features)

    def keys(self, images: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """The same from the slow copy, without gradient, and the pooled dense output (B, D)."""

        def encode(images: Tensor) -> tuple[Tensor, ...]:
            features = self.key_backbone(images)[self.backbone.last]
            vectors = self.key_head(global_average_pool(features))
            features = self.regrid(features)
            dense = self.key_dense_head(features)
            return features, vectors, dense, global_average_pool(dense)

        return encode_shuffled(encode, images, batch, seed=self.seed, deal=self.groups > 1)

    def regrid(self, features: Tensor) -> Tensor:
        """Average the map onto the config's grid, for the head and the matching alike."""
        if self.config.grid is None:
            return features
        return F.adaptive_avg_pool2d(features, self.config.grid)

    def match(
        self,
        features: Tensor,
        others: Tensor,
        dense: Tensor,
        other_dense: Tensor,
        batch: Batch,
        *,
        swapped: bool = False,
    ) -> Tensor:
        """For each cell of the first map the matching cell of the second, (B, P); no gradient."""
        if self.config.matching == "geometry":
            here, there = batch.geometry[::-1] if swapped else batch.geometry
            return nearest_cells(here, there, features.shape[-1])
        if self.config.matching == "head":
            return match_cells(dense.detach().flatten(2), other_dense.flatten(2))
        allowed = None
        if self.config.matching == "foreground":
            labels = [
                cell_labels(grid, threshold=self.config.foreground_threshold) for grid in batch.occupancy
            ]
            m1, m2 = labels[::-1] if swapped else labels
            allowed = m1[:, :, None] == m2[:, None, :]
        return match_cells(features.flatten(2), others.flatten(2), allowed)

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Let the copies follow, and lambda switch on after its warm-up."""
        self.steps_done.fill_(step + 1)
        weight = 0.0 if step + 1 < self.warm_up else self.config.lambda_dense
        return super().after_step(step, total) | {"lambda": weight}


def warm_up_steps(config: DenseCLConfig, total_steps: int) -> int:
    """Steps with lambda 0: the config's, or 10,000 but at most 5 % of the run."""
    if config.warm_up_steps is not None:
        return config.warm_up_steps
    return min(WARM_UP_STEPS, math.floor(WARM_UP_SHARE * total_steps))


def check_map(features: Tensor) -> None:
    """Refuse a map of a single cell, whose dense contrast would be the global one twice."""
    if features.shape[-1] < 2:
        raise UserError(
            "DenseCL matches cells, but the map is 1 x 1; with stride 32 use --image-size 128 (4 x 4), or "
            "a stem of smaller stride"
        )

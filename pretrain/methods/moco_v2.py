"""MoCo v2 (Chen et al., arXiv 2003.04297): a queue of keys from a momentum encoder.

Shape legend: B images of this process, D embedding, K queue entries.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...common.config import Count, Fraction, Positive, Width
from ...data.loading.batch import Batch, Needs, PhotometricPolicy, ViewPolicy
from ...engine.batchnorm import split_batch_norm
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool, projection_head
from ..losses import info_nce
from ..losses.common import l2_normalize
from ..modules.memory import Queue, QueueLength, queue_length
from ..modules.momentum import (
    batch_norm_groups,
    cosine_momentum,
    encode_shuffled,
    make_momentum_encoder,
    update_momentum,
)
from .base import Context, Method, Output
from .shared.views import ViewConfig


class MoCoConfig(ViewConfig):
    """What MoCo v2 and the methods built on it share."""

    dim: Width = 128  # MoCo v2, section 3
    hidden: Width | None = None  # of the head; None: the backbone's channels (2048, published for ResNet-50)
    temperature: Positive = 0.2  # MoCo v2, table 2
    momentum: Fraction = 0.999  # MoCo, section 4.1
    momentum_end: Fraction | None = None  # the momentum goes there by a cosine; None: constant (MoCo)
    queue_length: QueueLength | None = None  # published 65,536; None: see memory.queue_length
    # published 8 GPUs of 32 images; None: see momentum.batch_norm_groups
    batch_norm_groups: Count | None = None
    photometric_second: PhotometricPolicy | None = None  # None: both views by one policy (MoCo v2)

    def views(self, image_size: int) -> tuple[ViewPolicy, ViewPolicy]:
        """Give the policies of both views."""
        return self.view(image_size), self.view(image_size, self.photometric_second)


class SymmetricConfig(MoCoConfig):
    """What methods share that let each view be the query of the other's keys."""

    # the keys of each view in a queue of their own, as in HAPiCLR's code and the MoCo v2+ it is built on;
    # false: all in one
    queue_per_view: bool = True


class MoCoV2Config(SymmetricConfig):
    """MoCo v2 as published; `symmetric` also lets the second view be the query (MoCo v2+).

    `queue_per_view` counts with `symmetric` alone: one direction has the keys of one view.
    """

    symmetric: bool = False


class MomentumContrast(Method):
    """What MoCo v2 and the methods built on it share: encoder, head, their slow copies, the queue."""

    config: MoCoConfig

    def __init__(self, config: MoCoConfig, context: Context, backbone: Backbone) -> None:
        """Build them; the config is kept with the number of groups and the queue's length settled."""
        super().__init__()
        self.seed = context.seed
        self.groups = batch_norm_groups(config.batch_norm_groups, context.batch_size)
        length = queue_length(
            config.queue_length, data_set_size=context.data_set_size, batch_size=context.batch_size
        )
        # a run that is resumed on another number of processes must not choose anew
        self.config = config.replace(batch_norm_groups=self.groups, queue_length=length)
        self.backbone: Backbone = split_batch_norm(backbone, self.groups)
        width = backbone.channels[backbone.last]
        self.head = self.build_head(width)
        self.key_backbone = make_momentum_encoder(self.backbone)
        self.key_head = make_momentum_encoder(self.head)
        self.queue = Queue(length, config.dim, seed=context.seed)
        self.second_queue: Queue | None = None
        if self.has_second_queue():  # of the same random rows at first
            self.second_queue = Queue(length, config.dim, seed=context.seed)
        # copies and what they follow; subclasses add their own
        self.followed: list[tuple[nn.Module, nn.Module]] = [
            (self.key_backbone, self.backbone),
            (self.key_head, self.head),
        ]

    def build_head(self, width: int) -> nn.Sequential:
        """Build the instance head on C = `width` channels; no BatchNorm (MoCo v2)."""
        return projection_head(width, self.config.hidden or width, self.config.dim, batch_norm=False)

    def has_second_queue(self) -> bool:
        """Whether the keys of the first view have a queue beside that of the second's."""
        return False

    @property
    def queues(self) -> tuple[Queue, Queue]:
        """The queues of the second view's keys and of the first's; one twice where they share it."""
        return self.queue, self.second_queue or self.queue

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Let the copies follow, so that the next step's keys come from the newer copy, as published."""
        momentum, end = self.config.momentum, self.config.momentum_end
        if end is not None:
            momentum = cosine_momentum(momentum, step, total, end)
        copies, online = zip(*self.followed, strict=True)
        update_momentum(copies, online, momentum)
        return {"schedule/momentum": momentum}


class MoCoV2(MomentumContrast):
    """Queries of the trained encoder against keys of its slow copy."""

    name = "moco_v2"
    source = "Chen et al., Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297"
    Config: ClassVar[type[MoCoV2Config]] = MoCoV2Config
    config: MoCoV2Config

    @classmethod
    def needs(cls, config: MoCoV2Config, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views of one policy; no masks."""
        return Needs(views=config.views(image_size))

    def has_second_queue(self) -> bool:
        """Two queues for two directions, unless the config joins them."""
        return self.config.symmetric and self.config.queue_per_view

    def step(self, batch: Batch) -> Output:
        """Contrast queries with keys, in one direction or both; then enqueue the keys."""
        first, second = batch.views
        pairs = [(self.queries(first), self.keys(second, batch))]
        if self.config.symmetric:
            pairs.append((self.queries(second), self.keys(first, batch)))
        return instance_output(pairs, self.queues, self.config.temperature)

    def queries(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D), with gradient."""
        vectors: Tensor = self.head(global_average_pool(self.backbone(images)[self.backbone.last]))
        return vectors

    def keys(self, images: Tensor, batch: Batch) -> Tensor:
        """(B, 3, S, S) to (B, D), without gradient, on a dealt batch."""

        def encode(images: Tensor) -> tuple[Tensor]:
            return (self.key_head(global_average_pool(self.key_backbone(images)[self.backbone.last])),)

        return encode_shuffled(encode, images, batch, seed=self.seed, deal=self.groups > 1)[0]


def instance_output(
    pairs: list[tuple[Tensor, Tensor]], queues: tuple[Queue, ...], temperature: float
) -> Output:
    """Mean InfoNCE over (query, key) pairs (B, D), with what is worth logging; enqueues the keys.

    Args:
        pairs: of one direction or two.
        queues: of each direction, of keys of the view that its keys are of.
        temperature: of the contrast.
    """
    losses = [
        info_nce(query, key, queue.rows, temperature=temperature)
        for (query, key), queue in zip(pairs, queues, strict=False)
    ]
    loss = torch.stack(losses).mean() if len(losses) > 1 else losses[0]
    with torch.no_grad():
        query = l2_normalize(pairs[0][0])
        positive = (query * l2_normalize(pairs[0][1])).sum(dim=1).mean()
        negative = query.mean(dim=0) @ queues[0].rows.to(query.dtype).mean(dim=0)
    for (_, key), queue in zip(pairs, queues, strict=False):
        queue.enqueue(key)
    return Output(
        loss=loss,
        loss_terms={"instance": loss.detach()},
        metrics={"similarity/positive": positive, "similarity/negative": negative},
        embeddings=query,
        references={"instance": math.log(len(queues[0].rows) + 1)},
    )

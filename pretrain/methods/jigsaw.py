"""Jigsaw (Noroozi and Favaro, arXiv 1603.09246): tell in which order the patches of an image were shuffled.

Shape legend: B images of this process, C map channels, H hidden, 9 cells.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...common.config import Width
from ...data.loading.batch import Batch, Needs, PhotometricPolicy
from ...engine.distributed import rank
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool
from ..losses.common import to_float32
from ..modules.counter_draws import draw_integers, step_key
from .base import Context, Method, Output
from .shared.pretext import CELLS, distant_permutations, jigsaw_policy, ordered
from .shared.views import VISSL_JIGSAW, ViewConfig


class JigsawConfig(ViewConfig):
    """Jigsaw as PIRL is compared with it (VISSL, jigsaw_8gpu_resnet.yaml).

    The crop is PIRL's, .6 to 1 of the area; VISSL's is a square of 255 pixels of an image whose short side
    is 256. The permutations are chosen by our own greedy search; VISSL loads its list from a file.
    """

    # maximally distant; 1,000 in the paper, 2,000 in PIRL's comparison
    permutations: Annotated[int, Field(ge=2, le=10_000)] = 2000
    hidden: Width = 1000  # outputs per patch
    photometric: PhotometricPolicy = VISSL_JIGSAW  # one draw for all patches of an image


class Jigsaw(Method):
    """Trunk over each patch, one layer with BatchNorm on each, one linear layer over all nine."""

    name = "jigsaw"
    source = "Noroozi and Favaro, Solving Jigsaw Puzzles, arXiv 1603.09246"
    Config: ClassVar[type[JigsawConfig]] = JigsawConfig
    orders: Tensor

    @classmethod
    def needs(cls, config: JigsawConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Jigsaw patches alone; no masks."""
        policy = jigsaw_policy(image_size, config.hflip, config.photometric, per_patch=False)
        return Needs(views=(), jigsaw=policy)

    def __init__(self, config: JigsawConfig, context: Context, backbone: Backbone) -> None:
        """Build trunk, heads and the fixed set of orders."""
        super().__init__()
        self.config, self.seed = config, context.seed
        self.backbone: Backbone = backbone
        width = backbone.channels[backbone.last]
        self.patch_head = nn.Sequential(
            nn.Linear(width, config.hidden), nn.BatchNorm1d(config.hidden), nn.ReLU(inplace=True)
        )
        self.order_head = nn.Linear(CELLS * config.hidden, config.permutations)
        self.register_buffer("orders", torch.from_numpy(distant_permutations(config.permutations)))

    def step(self, batch: Batch) -> Output:
        """Shuffle the nine patch vectors by one of the orders and classify which."""
        assert batch.patches is not None
        features = global_average_pool(self.backbone(batch.patches.flatten(0, 1))[self.backbone.last])
        each = self.patch_head(features).unflatten(0, (-1, CELLS))
        label = self.draw_labels(batch)
        logits = to_float32(self.order_head(ordered(each, self.orders[label]).flatten(1)))
        loss = F.cross_entropy(logits, label)
        accuracy = (logits.detach().argmax(dim=1) == label).float().mean()
        return Output(
            loss=loss,
            loss_terms={"permutation": loss.detach()},
            metrics={"accuracy": accuracy},
            embeddings=features.detach(),
            references={
                "permutation": math.log(self.config.permutations),
                "accuracy": 1 / self.config.permutations,
            },
        )

    def draw_labels(self, batch: Batch) -> Tensor:
        """Draw one of the orders for each sample by counter, (B,); the same for any number of processes."""
        images, device = len(batch.index), batch.index.device
        key = step_key(self.seed, batch, "jigsaw label")
        return draw_integers(
            self.config.permutations, (images,), key=key, device=device, first=rank() * images
        )

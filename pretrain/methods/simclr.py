"""SimCLR (Chen et al., arXiv 2002.05709): two views of an image against all other views of the batch.

Shape legend: B images of this process, D embedding.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...common.config import AreaRange, Positive, Width
from ...data.loading.batch import Batch, Needs, PhotometricPolicy
from ...engine.distributed import gather
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool, projection_head
from ..losses import nt_xent
from ..losses.common import l2_normalize
from .base import Context, Method, Output
from .shared.views import SIMCLR, ViewConfig


class SimCLRConfig(ViewConfig):
    """SimCLR; temperature 0.1 is the paper's for 4096 images, 0.2 the HAPiCL comparison's for 1024."""

    dim: Width = 128  # section 4.2
    temperature: Positive = 0.2
    crop_scale: AreaRange = (0.08, 1.0)  # appendix A
    photometric: PhotometricPolicy = SIMCLR


class SimCLR(Method):
    """One encoder, one head, NT-Xent over the global batch."""

    name = "simclr"
    source = "Chen et al., A Simple Framework for Contrastive Learning, arXiv 2002.05709"
    Config: ClassVar[type[SimCLRConfig]] = SimCLRConfig

    @classmethod
    def needs(cls, config: SimCLRConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views of one policy; no masks."""
        return Needs(views=(config.view(image_size),) * 2)

    def __init__(self, config: SimCLRConfig, context: Context, backbone: Backbone) -> None:
        """Build encoder and head."""
        super().__init__()
        self.config = config
        self.backbone: Backbone = backbone
        width = backbone.channels[backbone.last]
        self.head = projection_head(width, width, config.dim, batch_norm=True)

    def step(self, batch: Batch) -> Output:
        """Encode both views at once (BatchNorm over both, as published) and contrast."""
        features = self.backbone(torch.cat(batch.views))[self.backbone.last]
        z1, z2 = self.head(global_average_pool(features)).chunk(2)
        return batch_output(z1, z2, self.config.temperature)


def batch_output(z1: Tensor, z2: Tensor, temperature: float) -> Output:
    """NT-Xent of two views (B, D) against the global batch, with what is worth logging."""
    z1, z2 = gather(z1), gather(z2)
    loss = nt_xent(z1, z2, temperature=temperature)
    with torch.no_grad():
        rows = len(z1)
        unit1, unit2 = l2_normalize(z1), l2_normalize(z2)
        positive = (unit1 * unit2).sum(dim=1)
        # sum of all products of 2B unit vectors, less their own and the pairs'
        total = (unit1.sum(dim=0) + unit2.sum(dim=0)).square().sum()
        negative = (total - 2 * rows - 2 * positive.sum()) / max(1, 2 * rows * (2 * rows - 2))
    return Output(
        loss=loss,
        loss_terms={"instance": loss.detach()},
        metrics={"similarity/positive": positive.mean(), "similarity/negative": negative},
        embeddings=unit1,
        references={"instance": math.log(max(1, 2 * rows - 1))},
    )

"""SimCLR (Chen et al., arXiv 2002.05709): two views of an image against all other views of the batch.

Shape legend: B images of this process, D embedding.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ...common.config import AreaRange, Positive, Width
from ...data.loading.batch import Batch, Needs, PhotometricPolicy
from ...engine.distributed import gather
from ...models.backbones.base import Backbone
from ...models.backbones.resnet import zero_init_residual
from ...models.heads import batch_norm_head, global_average_pool
from ..losses import nt_xent
from ..losses.common import l2_normalize
from .base import Context, Method, Output
from .shared.views import SIMCLR, ViewConfig


class SimCLRConfig(ViewConfig):
    """SimCLR; temperature 0.1 is the paper's for 4096 images, 0.2 the HAPiCL comparison's for 1024.

    The head is that of the authors' code (google-research/simclr, model_util.py): BatchNorm on every layer,
    no bias after the last. The paper speaks of two layers, the code's default is three.
    """

    dim: Width = 128  # section 4.2
    head_layers: Annotated[int, Field(ge=1, le=8)] = 3
    last_batch_norm: bool = True  # false: a plain last layer with bias, as in HAPiCLR's SimCLR form
    zero_init_residual: bool = False  # the authors' ResNet starts so; the recipes say which
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
        if config.zero_init_residual:
            zero_init_residual(backbone)
        self.head = build_head(config, backbone.channels[backbone.last])

    def step(self, batch: Batch) -> Output:
        """Encode both views at once (BatchNorm over both, as published) and contrast."""
        features = self.backbone(torch.cat(batch.views))[self.backbone.last]
        z1, z2 = self.head(global_average_pool(features)).chunk(2)
        return batch_output(z1, z2, self.config.temperature)


def build_head(config: SimCLRConfig, width: int) -> nn.Sequential:
    """Build the projection head on C = `width` pooled channels."""
    widths = [width] * config.head_layers
    return batch_norm_head(*widths, config.dim, last="scaled" if config.last_batch_norm else "bias")


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

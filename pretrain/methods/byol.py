"""BYOL (Grill et al., arXiv 2006.07733): predict the slow copy's view of the other crop; no negatives.

Shape legend: B images of this process, D embedding.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...common.config import AreaRange, Fraction, Width
from ...data.loading.batch import Batch, Needs, PhotometricPolicy
from ...models.backbones.base import Backbone
from ...models.backbones.resnet import zero_init_residual
from ...models.heads import global_average_pool, projection_head
from ..losses import negative_cosine
from ..losses.common import l2_normalize
from ..modules.momentum import cosine_momentum, make_momentum_encoder, update_momentum
from .base import Context, Method, Output
from .shared.views import BYOL_FIRST, BYOL_SECOND, ViewConfig


class BYOLConfig(ViewConfig):
    """BYOL; numbers from section 3.2 and table 6, and from byol/configs/byol.py of deepmind-research."""

    hidden: Width = 4096
    dim: Width = 256
    zero_init_residual: bool = False  # the authors' ResNet starts so; the recipes say which
    momentum: Fraction = 0.996  # 0.99 for 300 epochs and fewer (appendix); rises to 1 by a cosine
    crop_scale: AreaRange = (0.08, 1.0)
    photometric: PhotometricPolicy = BYOL_FIRST
    photometric_second: PhotometricPolicy = BYOL_SECOND


class BYOL(Method):
    """Online encoder, projector and predictor; target encoder and projector by EMA."""

    name = "byol"
    source = "Grill et al., Bootstrap Your Own Latent, arXiv 2006.07733"
    Config: ClassVar[type[BYOLConfig]] = BYOLConfig

    @classmethod
    def needs(cls, config: BYOLConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views of two policies; no masks."""
        return Needs(
            views=(
                config.view(image_size),
                config.view(image_size, config.photometric_second),
            )
        )

    def __init__(self, config: BYOLConfig, context: Context, backbone: Backbone) -> None:
        """Build the online network and its target."""
        super().__init__()
        self.config = config
        self.backbone: Backbone = backbone
        if config.zero_init_residual:
            zero_init_residual(backbone)
        width = backbone.channels[backbone.last]
        self.projector = projection_head(width, config.hidden, config.dim, batch_norm=True)
        self.predictor = projection_head(config.dim, config.hidden, config.dim, batch_norm=True)
        self.target_backbone = make_momentum_encoder(self.backbone)
        self.target_projector = make_momentum_encoder(self.projector)

    def step(self, batch: Batch) -> Output:
        """Predict each view's target from the other view."""
        first, second = batch.views
        p1, p2 = self.predict(first), self.predict(second)
        t1, t2 = self.target(first), self.target(second)
        loss = negative_cosine(p1, t2) + negative_cosine(p2, t1)
        return Output(
            loss=loss,
            loss_terms={"instance": loss.detach()},
            metrics={"similarity/positive": 1 - loss.detach() / 4},
            embeddings=l2_normalize(t1),
            references={"instance": 4.0},
        )

    def predict(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D), with gradient."""
        vectors: Tensor = self.predictor(
            self.projector(global_average_pool(self.backbone(images)[self.backbone.last]))
        )
        return vectors

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D), without gradient."""
        vectors: Tensor = self.target_projector(
            global_average_pool(self.target_backbone(images)[self.backbone.last])
        )
        return vectors

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Let the target follow, ever more slowly."""
        momentum = cosine_momentum(self.config.momentum, step, total)
        update_momentum(
            [self.target_backbone, self.target_projector], [self.backbone, self.projector], momentum
        )
        return {"schedule/momentum": momentum}

"""HARL (Tran et al., Sensors 2022): BYOL on vectors pooled over the map, its foreground, its background.

Shape legend: B images of this process, C map channels, D embedding, S cells per side.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...common.config import AreaRange, Fraction, Width
from ...data.loading.batch import Batch, Needs, PhotometricPolicy
from ...engine.distributed import reduce_mean
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool, projection_head
from ..losses.common import l2_normalize, to_float32
from ..modules.momentum import cosine_momentum, make_momentum_encoder, update_momentum
from .base import Context, Method, Output
from .shared.views import BYOL_FIRST, BYOL_SECOND, Redraws, ViewConfig


class HARLConfig(ViewConfig):
    """HARL; alpha and beta of the authors' released script, which leaves the background out.

    Widths are BYOL's; another script of theirs (MNCL.sh of TranNhiem/HAPiCLR) has 2048 and 512.
    """

    hidden: Width = 4096
    dim: Width = 256
    momentum: Fraction = 0.99  # rises to 1 by a cosine
    alpha: Fraction = 1.0  # foreground against background
    beta: Fraction = 0.9  # global against masked
    beta_end: Fraction | None = 0.0  # beta goes there by a cosine; None: constant
    min_foreground: Fraction = 0.3
    redraws: Redraws = 5
    crop_scale: AreaRange = (0.2, 1.0)
    photometric: PhotometricPolicy = BYOL_FIRST
    photometric_second: PhotometricPolicy = BYOL_SECOND


class HARL(Method):
    """One projector and one predictor for the three vectors of a view; target by EMA."""

    name = "harl"
    source = "Tran et al., HARL: Heuristic Attention Representation Learning, Sensors 22(14), 2022"
    Config: ClassVar[type[HARLConfig]] = HARLConfig
    beta: Tensor

    @classmethod
    def needs(cls, config: HARLConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views with masks on the last map's grid."""
        return Needs(
            views=(config.view(image_size), config.view(image_size, config.photometric_second)),
            grid=backbone.cells_per_side(image_size),
            min_foreground=config.min_foreground,
            redraws=config.redraws,
        )

    def __init__(self, config: HARLConfig, context: Context, backbone: Backbone) -> None:
        """Build the online network and its target."""
        super().__init__()
        self.config = config
        self.backbone: Backbone = backbone
        width = backbone.channels[backbone.last]
        self.projector = projection_head(width, config.hidden, config.dim, batch_norm=True)
        self.predictor = projection_head(config.dim, config.hidden, config.dim, batch_norm=True)
        self.target_backbone = make_momentum_encoder(self.backbone)
        self.target_projector = make_momentum_encoder(self.projector)
        self.register_buffer("beta", torch.tensor(config.beta))

    def step(self, batch: Batch) -> Output:
        """Predict each of the other view's three targets."""
        (first, second), (m1, m2) = batch.views, batch.occupancy
        p1, p2 = self.predict(first, m1), self.predict(second, m2)
        t1, t2 = self.target(first, m1), self.target(second, m2)
        # (3, B): global, foreground, background; both directions
        distances = (2 - 2 * (p1 * t2).sum(dim=2)) + (2 - 2 * (p2 * t1).sum(dim=2))
        everywhere, front, back = distances
        masked = self.config.alpha * front + (1 - self.config.alpha) * back
        known = torch.ones_like(masked) if batch.has_mask is None else batch.has_mask.to(masked.dtype)
        # an image without a mask has its global term alone; shares are those of the global batch
        fraction = reduce_mean(known.mean()).clamp(min=1 / 2**20)
        masked_mean = (masked * known).mean() / fraction
        loss = self.beta * everywhere.mean() + (1 - self.beta) * masked_mean
        loss_terms = {
            "instance": everywhere.mean(),
            "foreground": (front * known).mean() / fraction,
            "background": (back * known).mean() / fraction,
        }
        metrics = {"mask/foreground_fraction": torch.stack([m1, m2]).mean()}
        if batch.fallback is not None:
            metrics["mask/redraw_fallback_fraction"] = batch.fallback.float().mean()
        return Output(
            loss=loss,
            loss_terms={name: value.detach() for name, value in loss_terms.items()},
            metrics=metrics,
            embeddings=t1[0],
            references={"instance": 4.0, "foreground": 4.0, "background": 4.0},
        )

    def predict(self, images: Tensor, occupancy: Tensor) -> Tensor:
        """(B, 3, H, W) and (B, S, S) to unit predictions (3, B, D), with gradient."""
        vectors = three_vectors(self.backbone(images)[self.backbone.last], occupancy)
        return torch.stack([l2_normalize(self.predictor(self.projector(one))) for one in vectors])

    @torch.no_grad()
    def target(self, images: Tensor, occupancy: Tensor) -> Tensor:
        """(B, 3, H, W) and (B, S, S) to unit targets (3, B, D), without gradient."""
        vectors = three_vectors(self.target_backbone(images)[self.backbone.last], occupancy)
        return torch.stack([l2_normalize(self.target_projector(one)) for one in vectors])

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Let the target follow, and beta go its way."""
        momentum = cosine_momentum(self.config.momentum, step, total)
        update_momentum(
            [self.target_backbone, self.target_projector], [self.backbone, self.projector], momentum
        )
        beta = self.config.beta
        if self.config.beta_end is not None:
            progress = (step + 1) / max(1, total)
            beta = (
                self.config.beta_end + (beta - self.config.beta_end) * (1 + math.cos(math.pi * progress)) / 2
            )
        self.beta.fill_(beta)
        return {"schedule/momentum": momentum, "schedule/beta": beta}


def three_vectors(features: Tensor, occupancy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pool a map (B, C, S, S) over everything, foreground and background (B, S, S): (B, C) each.

    Masked means are sum(F * m) / (sum(m) + 1), so an empty mask gives zero and no division by zero. Each goes
    through projector and predictor by itself, as in the authors' code: BatchNorm over all three together
    would let the mask decide what the global vector becomes.
    """
    features = to_float32(features)
    front = occupancy[:, None].to(features.dtype)
    back = 1 - front
    return (
        global_average_pool(features),
        (features * front).sum(dim=(2, 3)) / (front.sum(dim=(2, 3)) + 1),
        (features * back).sum(dim=(2, 3)) / (back.sum(dim=(2, 3)) + 1),
    )

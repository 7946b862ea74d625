"""MoCo v3 (Chen et al., arXiv 2104.02057): contrast within the batch, symmetric, for ViTs and ResNets.

Shape legend: B images of this process, C backbone width, D embedding.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...common.config import AreaRange, Fraction, Positive, Width
from ...data.loading.batch import Batch, Needs, PhotometricPolicy
from ...engine.distributed import gather, rank
from ...models.backbones.base import Backbone, Vector
from ...models.backbones.resnet import ResNetBackbone, zero_init_residual
from ...models.backbones.vit import ViTBackbone
from ...models.heads import batch_norm_head, global_average_pool
from ..losses.batch import batch_info_nce
from ..losses.common import l2_normalize
from ..modules.momentum import cosine_momentum, make_momentum_encoder, update_momentum
from .base import Context, Method, Output
from .shared.views import BYOL_FIRST, BYOL_SECOND, ViewConfig

VIT_TEMPERATURE, RESNET_TEMPERATURE = 0.2, 1.0


class MoCoV3Config(ViewConfig):
    """MoCo v3 as published, section 4, and its code: each backbone has the form it has there.

    ViTs: projector of three layers, predictor of two, BatchNorm without weights after each. ResNets: a
    projector of two, a predictor without a last BatchNorm, residual blocks that start as the identity; their
    published crop is .2 to 1 (moco_v3_resnet_imagenet).
    """

    hidden: Width = 4096
    dim: Width = 256
    temperature: Positive | None = None  # None: 0.2 for ViTs, 1.0 for ResNets
    momentum: Fraction = 0.99  # rises to 1 (cosine)
    crop_scale: AreaRange = (0.08, 1.0)
    photometric: PhotometricPolicy = BYOL_FIRST
    photometric_second: PhotometricPolicy = BYOL_SECOND


class MoCoV3(Method):
    """Queries through encoder, projector and predictor; keys through slow copies of the first two."""

    name = "moco_v3"
    source = (
        "Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057"
    )
    evaluation_vectors: ClassVar[tuple[Vector, ...]] = ("class",)  # what projector and loss read
    Config: ClassVar[type[Any]] = MoCoV3Config

    @classmethod
    def needs(cls, config: MoCoV3Config, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views of two policies; no masks."""
        return Needs(views=(config.view(image_size), config.view(image_size, config.photometric_second)))

    def __init__(self, config: MoCoV3Config, context: Context, backbone: Backbone) -> None:
        """Build projector, predictor and the slow copies."""
        super().__init__()
        self.config = config
        self.backbone: Backbone = backbone
        is_vit = isinstance(backbone, ViTBackbone)
        if isinstance(backbone, ViTBackbone):
            backbone.initialise_as_moco_v3()
            backbone.freeze_patch_embedding()  # section 4.2: without it training is unstable
        elif isinstance(backbone, ResNetBackbone):
            zero_init_residual(backbone)
        self.temperature = config.temperature or (VIT_TEMPERATURE if is_vit else RESNET_TEMPERATURE)
        width, hidden = backbone.channels[backbone.last], config.hidden
        self.projector = batch_norm_head(width, *[hidden] * (2 if is_vit else 1), config.dim)
        self.predictor = batch_norm_head(config.dim, hidden, config.dim, last="plain" if is_vit else "none")
        self.key_backbone = make_momentum_encoder(self.backbone)
        self.key_projector = make_momentum_encoder(self.projector)

    def step(self, batch: Batch) -> Output:
        """Let each view be the query of the other's keys."""
        first, second = batch.views
        queries = [self.query(self.backbone(images)) for images in (first, second)]
        with torch.no_grad():
            keys = [self.key(self.key_backbone(images)) for images in (first, second)]
        return self.contrast(queries, keys)

    def query(self, maps: dict[str, Tensor]) -> Tensor:
        """Maps of the trained encoder to (B, D)."""
        vectors: Tensor = self.predictor(self.projector(self.vectors(maps)))
        return vectors

    def key(self, maps: dict[str, Tensor]) -> Tensor:
        """Maps of the slow encoder to (B, D)."""
        vectors: Tensor = self.key_projector(self.vectors(maps))
        return vectors

    def vectors(self, maps: dict[str, Tensor]) -> Tensor:
        """Class token of a ViT, pooled last map of a ResNet, (B, C)."""
        return maps["class"] if "class" in maps else global_average_pool(maps[self.backbone.last])

    def contrast(self, queries: list[Tensor], keys: list[Tensor]) -> Output:
        """Both directions' InfoNCE, each times 2T, with what is worth logging."""
        with torch.no_grad():
            every = [gather(key) for key in keys]
        crosses = [
            batch_info_nce(query, other, temperature=self.temperature, first=rank() * len(query))
            for query, other in zip(queries, reversed(every), strict=True)
        ]
        loss = 2 * self.temperature * (crosses[0] + crosses[1])
        with torch.no_grad():
            similarity = (l2_normalize(queries[0]) * l2_normalize(keys[1])).sum(1).mean()
            instance = (crosses[0] + crosses[1]) / 2
        return Output(
            loss=loss,
            loss_terms={"instance": instance},
            metrics={"similarity/positive": similarity},
            embeddings=l2_normalize(keys[0]),
            references={"instance": math.log(len(every[0]))},
        )

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Let the slow copies follow."""
        momentum = cosine_momentum(self.config.momentum, step, total)
        copies, online = self.followed()
        update_momentum(copies, online, momentum)
        return {"schedule/momentum": momentum}

    def followed(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Slow copies and what they follow."""
        return [self.key_backbone, self.key_projector], [self.backbone, self.projector]

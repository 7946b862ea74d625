"""HAPiCL on Vision Transformers, this project's own: its pixel loss on patch tokens beside MoCo v3.

Not from the authors, who used ResNets. Shape legend: B images of this process, D embedding, S cells per side.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import model_validator
from torch import nn

from ...data.loading.batch import Batch, Needs
from ...models.backbones.base import Backbone, Vector
from ...models.heads import dense_projection_head
from ..modules.momentum import make_momentum_encoder
from .base import Context, Output
from .moco_v3 import MoCoV3, MoCoV3Config
from .shared.pixel_term import PixelConfig, add_pixel_loss, pixel_output, view_labels


class HAPiCLViTConfig(MoCoV3Config, PixelConfig):
    """MoCo v3's settings and the pixel term's.

    With pixel_weight 0 a step on a given batch is MoCo v3's, bit for bit; crops are still redrawn by masks.
    """

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        """Refuse settings that only a ResNet's maps or the authors' heads give a meaning."""
        if self.feature_level != "layer4" or self.pixel_head != "default":
            raise ValueError(
                "hapicl_vit reads the patch tokens and has no released head: leave out feature_level and "
                "pixel_head"
            )
        return self


class HAPiCLViT(MoCoV3):
    """MoCo v3 with a pixel head on the last map of the encoder and of its slow copy."""

    name = "hapicl_vit"
    source = "this project's own: HAPiCL (doi 10.1007/s00371-023-03217-x) on MoCo v3 (arXiv 2104.02057)"
    # both are trained: MoCo v3's term reads the class token, the pixel term the patches
    evaluation_vectors: ClassVar[tuple[Vector, ...]] = ("class", "mean")
    Config: ClassVar[type[HAPiCLViTConfig]] = HAPiCLViTConfig
    config: HAPiCLViTConfig

    @classmethod
    def needs(cls, config: MoCoV3Config, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views with masks."""
        assert isinstance(config, HAPiCLViTConfig)
        views = (config.view(image_size), config.view(image_size, config.photometric_second))
        return config.pixel_needs(views, backbone, image_size=image_size)

    def __init__(self, config: HAPiCLViTConfig, context: Context, backbone: Backbone) -> None:
        """Build what MoCo v3 has, then the pixel heads."""
        super().__init__(config, context, backbone)
        width = backbone.channels[backbone.last]
        self.pixel_head: nn.Sequential | None = None
        self.key_pixel_head: nn.Sequential | None = None
        if config.pixel_weight > 0:
            hidden, dim = config.pixel_hidden or 2048, config.pixel_dim or 256
            self.pixel_head = dense_projection_head(width, hidden, dim, batch_norm=True)
            self.key_pixel_head = make_momentum_encoder(self.pixel_head)

    def step(self, batch: Batch) -> Output:
        """Contrast images as MoCo v3 does, and cells of each view with the other's slow cells."""
        maps = [self.backbone(images) for images in batch.views]
        with torch.no_grad():
            slow = [self.key_backbone(images) for images in batch.views]
            keys = [self.key(one) for one in slow]
        instance = self.contrast([self.query(one) for one in maps], keys)
        if self.pixel_head is None or self.key_pixel_head is None:
            return instance
        u1, u2 = (self.pixel_head(one[self.backbone.last]) for one in maps)
        with torch.no_grad():
            v1, v2 = (self.key_pixel_head(one[self.backbone.last]) for one in slow)
        m1, m2 = view_labels(batch, self.config)
        pixel = pixel_output([(u1, v2, m1, m2), (u2, v1, m2, m1)], batch, self.config)
        return add_pixel_loss(instance, pixel, self.config.pixel_weight)

    def followed(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Slow copies and what they follow, the pixel head too."""
        copies, online = super().followed()
        if self.pixel_head is not None and self.key_pixel_head is not None:
            copies, online = [*copies, self.key_pixel_head], [*online, self.pixel_head]
        return copies, online

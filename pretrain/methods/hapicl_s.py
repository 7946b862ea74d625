"""HAPiCL-S: SimCLR's instance term plus HAPiCL's pixel term on one encoder.

Shape legend: B images of this process, S cells per side.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from ...data.loading.batch import Batch, Needs
from ...models.backbones.base import Backbone
from ...models.backbones.resnet import zero_init_residual
from ...models.heads import global_average_pool
from .base import Context, Method, Output
from .shared.pixel_term import (
    PixelConfig,
    add_pixel_loss,
    build_pixel_head,
    pixel_map,
    pixel_output,
    view_labels,
)
from .simclr import SimCLRConfig, batch_output, build_head


class HAPiCLSConfig(SimCLRConfig, PixelConfig):
    """SimCLR's settings and the pixel term's.

    With pixel_weight 0 a step on a given batch is SimCLR's, bit for bit; crops are still redrawn by masks.
    The authors' head has two layers and a plain last one (hapicl_s_imagenet).
    """


class HAPiCLS(Method):
    """One encoder, two heads, two losses."""

    name = "hapicl_s"
    source = "Liu, HAPiCL, National Central University 2022 (thesis abstract); doi 10.1007/s00371-023-03217-x"
    Config: ClassVar[type[HAPiCLSConfig]] = HAPiCLSConfig

    @classmethod
    def needs(cls, config: HAPiCLSConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views with masks."""
        return config.pixel_needs((config.view(image_size),) * 2, backbone, image_size=image_size)

    def __init__(self, config: HAPiCLSConfig, context: Context, backbone: Backbone) -> None:
        """Build the encoder and head as SimCLR does, then the pixel head."""
        super().__init__()
        self.config = config
        self.backbone: Backbone = backbone
        if config.zero_init_residual:
            zero_init_residual(backbone)
        self.head = build_head(config, backbone.channels[backbone.last])
        self.pixel_head = None
        if config.pixel_weight > 0:
            self.pixel_head = build_pixel_head(config, backbone, released=(1024, 2048))

    def step(self, batch: Batch) -> Output:
        """Encode both views at once; contrast images by their pooled vectors and cells by their labels."""
        maps = self.backbone(torch.cat(batch.views))
        z1, z2 = self.head(global_average_pool(maps[self.backbone.last])).chunk(2)
        instance = batch_output(z1, z2, self.config.temperature)
        if self.pixel_head is None:
            return instance
        u1, u2 = self.pixel_head(pixel_map(maps, self.config)).chunk(2)
        m1, m2 = view_labels(batch, self.config)
        pairs = [(u1, u2, m1, m2)]
        # other images' cells of one view: symmetric in both directions only
        if self.config.negatives == "batch":
            pairs.append((u2, u1, m2, m1))
        return add_pixel_loss(instance, pixel_output(pairs, batch, self.config), self.config.pixel_weight)

"""HAPiCL-M: MoCo v2's symmetric instance term plus HAPiCL's pixel term against a momentum encoder.

Shape legend: B images of this process, D embedding, S cells per side.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ...data.loading.batch import Batch, Needs
from ...engine.batchnorm import split_batch_norm
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool
from ..modules.momentum import encode_shuffled, make_momentum_encoder
from .base import Context, Output
from .moco_v2 import MomentumContrast, SymmetricConfig, instance_output
from .shared.pixel_term import (
    PixelConfig,
    add_pixel_loss,
    build_pixel_head,
    pixel_map,
    pixel_output,
    view_labels,
)


class HAPiCLMConfig(SymmetricConfig, PixelConfig):
    """MoCo v2's settings and the pixel term's; numbers of MoCo v2, the authors' are in hapicl_m_imagenet.

    With pixel_weight 0 a step on a given batch is one of MoCo v2, symmetric, bit for bit. The run is not:
    it still needs masks and redraws crops without foreground (the control row of the claims table), unless
    min_foreground is 0 too.
    """


class HAPiCLM(MomentumContrast):
    """Trained encoder and slow copy, each with an instance head and a pixel head."""

    name = "hapicl_m"
    source = "Liu, HAPiCL, National Central University 2022 (thesis abstract); doi 10.1007/s00371-023-03217-x"
    Config: ClassVar[type[HAPiCLMConfig]] = HAPiCLMConfig
    config: HAPiCLMConfig

    @classmethod
    def needs(cls, config: HAPiCLMConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views with masks."""
        return config.pixel_needs(config.views(image_size), backbone, image_size=image_size)

    def __init__(self, config: HAPiCLMConfig, context: Context, backbone: Backbone) -> None:
        """Build what MoCo v2 has, then the pixel heads."""
        super().__init__(config, context, backbone)
        self.pixel_head = self.key_pixel_head = None
        if config.pixel_weight > 0:
            head = build_pixel_head(config, backbone, released=(2048, 2048))
            self.pixel_head = split_batch_norm(head, self.groups)
            self.key_pixel_head = make_momentum_encoder(self.pixel_head)
            self.followed.append((self.key_pixel_head, self.pixel_head))

    def has_second_queue(self) -> bool:
        """Two queues for two directions, unless the config joins them."""
        return self.config.queue_per_view

    def step(self, batch: Batch) -> Output:
        """Let each view be the query of the other's keys, for images and for cells."""
        first, second = batch.views
        z1, u1 = self.queries(first)
        k2, v2 = self.keys(second, batch)
        z2, u2 = self.queries(second)
        k1, v1 = self.keys(first, batch)
        instance = instance_output([(z1, k2), (z2, k1)], self.queues, self.config.temperature)
        if u1 is None or u2 is None or v1 is None or v2 is None:
            return instance
        m1, m2 = view_labels(batch, self.config)
        pixel = pixel_output([(u1, v2, m1, m2), (u2, v1, m2, m1)], batch, self.config)
        return add_pixel_loss(instance, pixel, self.config.pixel_weight)

    def queries(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Instance (B, D) and pixel (B, D, S, S) embeddings, with gradient."""
        maps = self.backbone(images)
        vectors = self.head(global_average_pool(maps[self.backbone.last]))
        return vectors, None if self.pixel_head is None else self.pixel_head(pixel_map(maps, self.config))

    def keys(self, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The same from the slow copy, without gradient, on a dealt batch."""

        def encode(images: Tensor) -> tuple[Tensor, ...]:
            maps = self.key_backbone(images)
            vectors = self.key_head(global_average_pool(maps[self.backbone.last]))
            if self.key_pixel_head is None:
                return (vectors,)
            return vectors, self.key_pixel_head(pixel_map(maps, self.config))

        keys = encode_shuffled(encode, images, batch, seed=self.seed, deal=self.groups > 1)
        return keys[0], keys[1] if len(keys) > 1 else None

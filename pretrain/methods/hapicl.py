"""HAPiCL's pixel loss alone (Liu, National Central University 2022): for study, not for training backbones.

Shape legend: B images of this process, S cells per side.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import torch

from ...common.config import Positive
from ...data.loading.batch import Batch, Needs
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool
from .base import Context, Method, Output
from .shared.pixel_term import PixelConfig, build_pixel_head, pixel_map, pixel_output, view_labels

logger = logging.getLogger(__name__)


class HAPiCLConfig(PixelConfig):
    """The pixel term's settings, whose weight is above 0 here: there is no other term."""

    pixel_weight: Positive = 1.0


class HAPiCL(Method):
    """One encoder, one pixel head, the pixel loss."""

    name = "hapicl"
    source = "Liu, HAPiCL, National Central University 2022 (thesis abstract); doi 10.1007/s00371-023-03217-x"
    Config: ClassVar[type[HAPiCLConfig]] = HAPiCLConfig

    @classmethod
    def needs(cls, config: HAPiCLConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views with masks."""
        return config.pixel_needs((config.view(image_size),) * 2, backbone, image_size=image_size)

    def __init__(self, config: HAPiCLConfig, context: Context, backbone: Backbone) -> None:
        """Build encoder and pixel head; warn of the trivial optimum."""
        super().__init__()
        self.config = config
        self.backbone: Backbone = backbone
        self.pixel_head = build_pixel_head(config, backbone, released=(1024, 2048))
        if config.negatives == "image":
            logger.warning(
                "hapicl trains the pixel loss alone, which one foreground direction and one opposite "
                "background direction shared by all images make minimal: it learns figure from ground, not "
                "one image from another. Use hapicl_m or hapicl_s to pretrain a backbone, or negatives=batch"
            )

    def step(self, batch: Batch) -> Output:
        """Encode both views at once and contrast their cells."""
        maps = self.backbone(torch.cat(batch.views))
        u1, u2 = self.pixel_head(pixel_map(maps, self.config)).chunk(2)
        m1, m2 = view_labels(batch, self.config)
        pairs = [(u1, u2, m1, m2)]
        # other images' cells of one view: symmetric in both directions only
        if self.config.negatives == "batch":
            pairs.append((u2, u1, m2, m1))
        output = pixel_output(pairs, batch, self.config)
        output.loss = self.config.pixel_weight * output.loss
        output.embeddings = global_average_pool(maps[self.backbone.last]).detach().chunk(2)[0]
        return output

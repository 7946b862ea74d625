"""Rotation (RotNet, Gidaris et al., arXiv 1803.07728): tell by how many quarter turns an image was rotated.

Shape legend: B images of this process, C map channels.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import nn

from ...common.config import AreaRange
from ...data.loading.batch import NO_PHOTOMETRIC, Batch, Needs, PhotometricPolicy
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool
from ..losses.common import to_float32
from .base import Context, Method, Output
from .shared.pretext import rotate_images
from .shared.views import ViewConfig


class RotationConfig(ViewConfig):
    """Rotation as PIRL is compared with it (VISSL, rotnet_8gpu_resnet.yaml): crop and flip alone."""

    crop_scale: AreaRange = (0.08, 1.0)
    photometric: PhotometricPolicy = NO_PHOTOMETRIC


class Rotation(Method):
    """Trunk and a linear classifier of four; one turn drawn for each image and epoch."""

    name = "rotation"
    source = (
        "Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations, arXiv 1803.07728"
    )
    Config: ClassVar[type[RotationConfig]] = RotationConfig

    @classmethod
    def needs(cls, config: RotationConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """One view; no masks."""
        return Needs(views=(config.view(image_size),))

    def __init__(self, config: RotationConfig, context: Context, backbone: Backbone) -> None:
        """Build trunk and classifier."""
        super().__init__()
        self.config = config
        self.backbone: Backbone = backbone
        self.classifier = nn.Linear(backbone.channels[backbone.last], 4)

    def step(self, batch: Batch) -> Output:
        """Rotate each image by its drawn turn and classify which."""
        assert batch.rotation is not None
        images = rotate_images(batch.views[0], batch.rotation)
        features = global_average_pool(self.backbone(images)[self.backbone.last])
        logits = to_float32(self.classifier(features))
        loss = F.cross_entropy(logits, batch.rotation)
        accuracy = (logits.detach().argmax(dim=1) == batch.rotation).float().mean()
        return Output(
            loss=loss,
            loss_terms={"rotation": loss.detach()},
            metrics={"accuracy": accuracy},
            embeddings=features.detach(),
            references={"rotation": math.log(4), "accuracy": 0.25},
        )

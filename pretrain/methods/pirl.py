"""PIRL (Misra and van der Maaten, arXiv 1912.01991): an image and its transform against a memory bank.

Shape legend: B images of this process, C map channels, D embedding, P patch side in pixels.
"""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...common.config import Fraction
from ...data.loading.batch import Batch, Needs
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool, projection_head
from ..losses.common import l2_normalize
from .base import Context, Output
from .shared.bank_term import BankConfig, BankMethod
from .shared.pretext import CELLS, jigsaw_policy, ordered, rotate_images, rotate_patches

logger = logging.getLogger(__name__)


class PIRLConfig(BankConfig):
    """PIRL as published (VISSL, pirl_jigsaw_4node_resnet50.yaml).

    The crop that is cut into patches is flipped as a whole, as in PyContrast; VISSL flips each patch by
    itself. VISSL's published models used the NCE form; InfoNCE is PyContrast's and the default here.
    """

    transform: Literal["jigsaw", "rotation", "rotation_jigsaw"] = "jigsaw"
    lambda_transform: Fraction = 0.5  # weight of the transformed image; 0 is NPID
    mlp: bool = False  # heads with a hidden layer, as the first author's later configs (with temperature 0.1)


class PIRL(BankMethod):
    """Trunk, image head f, transform head g, memory bank written by f alone."""

    name = "pirl"
    source = "Misra and van der Maaten, Pretext-Invariant Representations, arXiv 1912.01991"
    Config: ClassVar[type[PIRLConfig]] = PIRLConfig
    config: PIRLConfig

    @classmethod
    def needs(cls, config: PIRLConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """The image, and its Jigsaw patches or a second crop to rotate; no masks."""
        view = config.view(image_size)
        if config.transform == "rotation":
            return Needs(views=(view, view))
        return Needs(views=(view,), jigsaw=jigsaw_policy(image_size, config.hflip, config.photometric))

    def __init__(self, config: PIRLConfig, context: Context, backbone: Backbone) -> None:
        """Build trunk, heads and bank; f and g share nothing."""
        super().__init__(config, context, backbone)
        width = backbone.channels[backbone.last]
        self.image_head = self.linear(width)
        self.transform_head = self.linear(width)  # for each patch, or for the rotated image
        self.join_head = None
        if config.transform != "rotation":
            self.join_head = nn.Linear(CELLS * config.dim, config.dim)

    def linear(self, width: int) -> nn.Module:
        """Linear(C, D), or its variant with a hidden layer."""
        if self.config.mlp:
            return projection_head(width, width, self.config.dim, batch_norm=False)
        return nn.Linear(width, self.config.dim)

    def step(self, batch: Batch) -> Output:
        """Bring image and transform to the image's bank row, away from other rows."""
        image = self.embed(batch.views[0])
        transform = self.transformed(batch)
        image_loss, transform_loss = self.contrast([image, transform], batch)
        weight = self.config.lambda_transform
        loss = weight * transform_loss + (1 - weight) * image_loss
        self.contrast.remember(batch.index, image)
        with torch.no_grad():
            alike = (l2_normalize(image) * l2_normalize(transform)).sum(dim=1).mean()
        chance = self.contrast.chance()
        known = self.config.loss == "infonce"
        return Output(
            loss=loss,
            loss_terms={"image": image_loss.detach(), "transform": transform_loss.detach()},
            metrics={"similarity/positive": alike},
            embeddings=l2_normalize(image.detach()),
            references={"image": chance, "transform": chance} if known else {},
        )

    def transformed(self, batch: Batch) -> Tensor:
        """Embedding of the transformed image, (B, D)."""
        if self.join_head is None:
            assert batch.rotation is not None
            images = rotate_images(batch.views[1], batch.rotation)
            vectors: Tensor = self.transform_head(
                global_average_pool(self.backbone(images)[self.backbone.last])
            )
            return vectors
        assert batch.patches is not None
        assert batch.permutation is not None
        patches = batch.patches
        if self.config.transform == "rotation_jigsaw":
            assert batch.rotation is not None
            patches = rotate_patches(patches, batch.rotation)
        features = global_average_pool(self.backbone(patches.flatten(0, 1))[self.backbone.last])
        each = self.transform_head(features).unflatten(0, (-1, CELLS))
        joined: Tensor = self.join_head(ordered(each, batch.permutation).flatten(1))
        return joined

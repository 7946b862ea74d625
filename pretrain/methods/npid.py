"""NPID (Wu et al., arXiv 1805.01978): every image against a memory bank; PIRL without the transform.

Shape legend: B images of this process, C map channels, D embedding.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from ...data.loading.batch import Batch, Needs, PhotometricPolicy
from ...models.backbones.base import Backbone
from ..losses.common import l2_normalize
from .base import Context, Output
from .shared.bank_term import BankConfig, BankMethod, Negatives
from .shared.views import VISSL_NPID


class NPIDConfig(BankConfig):
    """NPID as published, NCE with 4,096 negatives (section 4), with the augmentation of VISSL's config.

    The paper's own code crops .2 to 1 of the area and greys with probability .2.
    """

    negatives: Negatives = 4096
    loss: Literal["infonce", "nce"] = "nce"
    photometric: PhotometricPolicy = VISSL_NPID


class NPID(BankMethod):
    """Trunk, one linear head, memory bank."""

    name = "npid"
    source = "Wu et al., Non-Parametric Instance Discrimination, arXiv 1805.01978"
    Config: ClassVar[type[NPIDConfig]] = NPIDConfig

    @classmethod
    def needs(cls, config: NPIDConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """One view; no masks."""
        return Needs(views=(config.view(image_size),))

    def __init__(self, config: NPIDConfig, context: Context, backbone: Backbone) -> None:
        """Build trunk, head and bank."""
        super().__init__(config, context, backbone)
        self.image_head = nn.Linear(backbone.channels[backbone.last], config.dim)

    def step(self, batch: Batch) -> Output:
        """Bring the image to its own bank row, away from other rows."""
        image = self.embed(batch.views[0])
        (loss,) = self.contrast([image], batch)
        self.contrast.remember(batch.index, image)
        return Output(
            loss=loss,
            loss_terms={"image": loss.detach()},
            embeddings=l2_normalize(image.detach()),
            references={"image": self.contrast.chance()} if self.config.loss == "infonce" else {},
        )

"""NPID (Wu et al., arXiv 1805.01978): every image against a memory bank; PIRL without the transform.

Shape legend: B images of this process, C map channels, D embedding.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from ...data.loading.batch import Batch, Needs, PhotometricPolicy
from ...models.backbones.base import Backbone
from ...models.heads import global_average_pool
from ..losses.common import l2_normalize
from .base import Context, Method, Output
from .shared.bank_term import BankConfig, BankContrast, Negatives, settle_groups
from .shared.views import VISSL_NPID


class NPIDConfig(BankConfig):
    """NPID as published, NCE with 4,096 negatives (section 4), with the augmentation of VISSL's config.

    The paper's own code crops .2 to 1 of the area and greys with probability .2.
    """

    negatives: Negatives = 4096
    loss: Literal["infonce", "nce"] = "nce"
    photometric: PhotometricPolicy = VISSL_NPID


class NPID(Method):
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
        super().__init__()
        self.config, self.backbone = settle_groups(config, context, backbone)
        self.image_head = nn.Linear(backbone.channels[backbone.last], config.dim)
        self.contrast = BankContrast(config, context)

    def step(self, batch: Batch) -> Output:
        """Bring the image to its own bank row, away from other rows."""
        image = self.image_head(global_average_pool(self.backbone(batch.views[0])[self.backbone.last]))
        (loss,) = self.contrast([image], batch)
        self.contrast.remember(batch.index, image)
        return Output(
            loss=loss,
            loss_terms={"image": loss.detach()},
            embeddings=l2_normalize(image.detach()),
            references={"image": self.contrast.chance()} if self.config.loss == "infonce" else {},
        )

    def before_training(self, index_paths: list[str]) -> None:
        """Check that the bank's rows belong to these images."""
        self.contrast.bank.check_paths(index_paths)

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Let the head write its rows."""
        self.contrast.write()
        return {}

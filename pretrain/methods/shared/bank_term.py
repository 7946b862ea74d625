"""What PIRL and NPID share: a memory bank, its negatives by counter, and the contrast with it.

Shape legend: B images of this process, D embedding, n images of the data set, N negatives.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ....common.config import AreaRange, Count, Fraction, Positive, Width
from ....common.errors import UserError
from ....data.loading.batch import Batch, Needs, PhotometricPolicy
from ....engine.batchnorm import split_batch_norm
from ....engine.distributed import rank, reduce_mean
from ....models.backbones.base import Backbone
from ....models.heads import global_average_pool
from ...losses.bank import bank_scores, partition_estimate, scores_info_nce, scores_nce
from ...modules.counter_draws import draw_integers, step_key
from ...modules.memory import Bank
from ...modules.momentum import batch_norm_groups
from ..base import Context, Method
from .views import PIRL, ViewConfig

Negatives = Annotated[int, Field(ge=1, le=10**6)]


class BankConfig(ViewConfig):
    """Settings of the bank; numbers of PIRL (arXiv 1912.01991), section 3 and its released configs."""

    dim: Width = 128
    temperature: Positive = 0.07
    negatives: Negatives = 32_000  # at most one less than there are images
    shared_negatives: bool = False  # one draw for the whole batch: less memory, correlated negatives
    loss: Literal["infonce", "nce"] = "infonce"
    bank_momentum: Fraction = 0.5
    # VISSL ran GPUs of 32 images with a BatchNorm each; None: groups of 32, see momentum.batch_norm_groups
    batch_norm_groups: Count | None = None
    crop_scale: AreaRange = (0.08, 1.0)
    photometric: PhotometricPolicy = PIRL


class BankContrast(nn.Module):
    """The bank, the frozen partition of its NCE form, and the embeddings waiting to be written."""

    partition: Tensor

    def __init__(self, config: BankConfig, context: Context) -> None:
        """Make a bank of one row per image."""
        super().__init__()
        if context.data_set_size < 2:
            raise UserError("a memory bank needs at least 2 images")
        self.config, self.seed = config, context.seed
        self.negatives = min(config.negatives, context.data_set_size - 1)
        self.bank = Bank(context.data_set_size, config.dim, momentum=config.bank_momentum, seed=context.seed)
        self.register_buffer("partition", torch.zeros(()))
        self.partition_known = False
        self.pending: list[tuple[Tensor, Tensor]] = []

    def forward(self, embeddings: list[Tensor], batch: Batch) -> list[Tensor]:
        """Contrast each of the embeddings (B, D) of one image with its bank row; scalar losses.

        All of them meet the same negatives.
        """
        rows = self.draw_negatives(batch)
        scores = [bank_scores(vectors, self.bank.rows, batch.index, rows) for vectors in embeddings]
        if self.config.loss == "infonce":
            return [scores_info_nce(values, temperature=self.config.temperature) for values in scores]
        self.estimate_partition(scores)
        return [
            scores_nce(
                values,
                len(self.bank.rows),
                temperature=self.config.temperature,
                partition=self.partition,
            )
            for values in scores
        ]

    @torch.no_grad()
    def draw_negatives(self, batch: Batch) -> Tensor:
        """Draw bank rows by counter, (B, N) without each sample's own, or (N,) for all.

        A sample's draws depend on its place in the global batch, so any number of processes draws the same.
        """
        size, own = len(self.bank.rows), batch.index
        key = step_key(self.seed, batch, "negatives")
        if self.config.shared_negatives:  # a sample that meets its own row is masked in `bank_scores`
            return draw_integers(size, (self.negatives,), key=key, device=own.device)
        shape = (len(own), self.negatives)
        rows = draw_integers(
            size - 1, shape, key=key, device=own.device, first=rank() * len(own) * self.negatives
        )
        return rows + (rows >= own[:, None]).long()

    @torch.no_grad()
    def estimate_partition(self, scores: list[Tensor]) -> None:
        """Estimate Z on the first batch of the run and freeze it (NPID, arXiv 1805.01978, section 3.2)."""
        if self.partition_known:
            return
        size, temperature = len(self.bank.rows), self.config.temperature
        here = torch.stack([partition_estimate(values, size, temperature=temperature) for values in scores])
        fresh = reduce_mean(here.mean()).to(self.partition.dtype)
        # a resumed run has its Z already
        self.partition.copy_(torch.where(self.partition > 0, self.partition, fresh))
        self.partition_known = True

    def remember(self, index: Tensor, embeddings: Tensor) -> None:
        """Keep the image head's embeddings (B, D) until `write`: the loss still needs the old rows."""
        self.pending.append((index, embeddings.detach()))

    def write(self) -> None:
        """Write what waits into the bank, after the optimiser's update."""
        for index, embeddings in self.pending:
            self.bank.write(index, embeddings)
        self.pending.clear()

    def chance(self) -> float:
        """Give the loss when all similarities are equal; only InfoNCE has a closed form."""
        return math.log(self.negatives + 1)


class BankMethod(Method):
    """What PIRL and NPID share: trunk, image head and the bank that this head alone writes."""

    config: BankConfig
    image_head: nn.Module

    def __init__(self, config: BankConfig, context: Context, backbone: Backbone) -> None:
        """Take the trunk, with its BatchNorm groups settled in the config, and build the bank."""
        super().__init__()
        groups = batch_norm_groups(config.batch_norm_groups, context.batch_size, least=1)
        # a run that is resumed on another number of processes must not choose anew
        self.config = config.replace(batch_norm_groups=groups)
        self.backbone: Backbone = split_batch_norm(backbone, groups)
        self.contrast = BankContrast(config, context)

    def embed(self, images: Tensor) -> Tensor:
        """Image head's embeddings of (B, 3, S, S), (B, D)."""
        vectors: Tensor = self.image_head(global_average_pool(self.backbone(images)[self.backbone.last]))
        return vectors

    def before_training(self, index_paths: list[str]) -> None:
        """Check that the bank's rows belong to these images."""
        self.contrast.bank.check_paths(index_paths)

    def first_pass_needs(self, needs: Needs) -> Needs | None:
        """One view of every image, unless the bank is filled."""
        if self.contrast.bank.filled:
            return None
        return dataclasses.replace(needs, views=needs.views[:1], jigsaw=None)

    def first_pass(self, batch: Batch) -> None:
        """Put the images' embeddings into the bank."""
        self.contrast.bank.fill(batch.index, self.embed(batch.views[0]))

    def end_first_pass(self) -> None:
        """Note that the bank is filled."""
        self.contrast.bank.filled.fill_(True)

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Let the image head write its rows."""
        self.contrast.write()
        return {}

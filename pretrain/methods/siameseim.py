"""Siamese Image Modeling (arXiv 2206.01204): from a masked view, predict the features of another view.

`form="released"` is the system published at CVPR 2023, one dense loss; `form="v1"` is its first version
(preset `sim_v1`). Shape legend: B images of this process, S cells per side, N = S*S patches, K seen patches,
D embedding, P patch side in pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ...common.config import AreaRange, Depth, Fraction, NotNegative, Positive, Width
from ...common.errors import UserError
from ...common.types import Pixels
from ...data.loading.batch import NO_PHOTOMETRIC, Batch, CropFilter, Needs, PhotometricPolicy
from ...engine.distributed import reduce_mean
from ...models.backbones.base import Backbone
from ...models.backbones.vit import ViTBackbone, require_vit
from ...models.decoders import CrossViewDecoder
from ...models.tokens import BlockNorm, initialise, patchify, token_blocks
from ..losses.common import l2_normalize
from ..losses.tokens import (
    RELEASED_STRENGTH,
    collapse_level,
    cosine_collapse_level,
    effective_rank,
    normalised_patches,
    second_moment,
    unigrad_cosine,
    unigrad_parts,
)
from ..modules.momentum import cosine_momentum, make_momentum_encoder, update_momentum
from ..modules.patch_masking import ForegroundBias, MaskPolicy, MaskRatio, draw_mask, split
from .base import Context, Method, Output
from .shared.pictures import similarity_picture
from .shared.views import BYOL_FIRST, BYOL_SECOND, ViewConfig


class SiameseIMConfig(ViewConfig):
    """The released form; the first six entries are the switches of the published ablation."""

    views: Literal["different", "same"] = "different"  # crops of x1 and x2; same: x2 is cut as x1 is
    target: Literal["feature", "pixel"] = "feature"  # pixel: normalised patches of x2, no slow copy
    colour: bool = True  # photometric augmentation of both views
    norm: BlockNorm = "batch"  # of the projector's and the decoder's blocks
    global_weight: NotNegative = 0.0  # loss on the mean of the patch tokens; v1 has 1
    dense_weight: NotNegative = 1.0  # loss on every patch token; v1 has 4
    form: Literal["released", "v1"] = "released"
    dim: Width | None = None  # D; None takes the backbone's width (768 for ViT-B, as published)
    heads: Width | None = None  # of projector and decoder; None: 48 dimensions each (16 at D = 768)
    projector_depth: Depth = 2
    decoder_depth: Depth = 4
    mask_ratio: MaskRatio = 0.602  # 118 of 196
    mask_pattern: Literal["block", "random"] = "block"
    foreground_bias: ForegroundBias = 0.0  # ours: hide the foreground more (above 0) or less; needs masks
    # w * D of the released form (0.02 * 768). The first version's lambda is published nowhere that we can
    # read; there the same number is ours, so that both forms weigh their second term alike
    strength: Positive = RELEASED_STRENGTH
    moment_decay: Fraction = 0.99  # v1 only, where F is a moving average
    momentum: Fraction = 0.995  # of the slow copy, rising to 1 (cosine)
    crop_scale: AreaRange = (0.08, 1.0)
    crop_filter: CropFilter = "bicubic"
    photometric: PhotometricPolicy = BYOL_FIRST
    photometric_second: PhotometricPolicy = BYOL_SECOND

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        """Refuse a run without a loss, and losses that pixels do not have."""
        if self.global_weight == 0 and self.dense_weight == 0:
            raise ValueError("global_weight and dense_weight are both 0: give one above 0")
        if self.target == "pixel" and (self.form != "released" or self.global_weight > 0):
            raise ValueError("target=pixel has one dense loss: leave global_weight at 0 and form at released")
        return self

    def mask_policy(self) -> MaskPolicy:
        """Which patches of x1 are hidden."""
        return MaskPolicy(
            ratio=self.mask_ratio, pattern=self.mask_pattern, foreground_bias=self.foreground_bias
        )


class SiameseIM(Method):
    """Masked view x1 through the trained encoder, whole view x2 through its slow copy; one direction."""

    name = "siameseim"
    source = "Tao et al., Siamese Image Modeling, CVPR 2023, arXiv 2206.01204"
    Config: ClassVar[type[Any]] = SiameseIMConfig

    @classmethod
    def needs(cls, config: SiameseIMConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """Two views; masks only where they decide which patches are hidden."""
        first = config.view(image_size, None if config.colour else NO_PHOTOMETRIC)
        second = config.view(image_size, config.photometric_second if config.colour else NO_PHOTOMETRIC)
        if config.views == "same":
            second = dataclasses.replace(second, same_geometry_as=0)
        masks = backbone.cells_per_side(image_size) if config.foreground_bias else None
        return Needs(views=(first, second), grid=masks, min_foreground=0.0)

    def __init__(self, config: SiameseIMConfig, context: Context, backbone: Backbone) -> None:
        """Build projector and decoder, and slow copies where features are the target."""
        super().__init__()
        self.config, self.seed = config, context.seed
        self.backbone: ViTBackbone = require_vit(backbone, self.name)
        self.backbone.freeze_patch_embedding()
        self.backbone.drop_final_norm()
        self.mask = config.mask_policy()
        self.hidden = self.mask.count(self.backbone.grid)
        dim = config.dim or self.backbone.width
        heads = config.heads or max(1, dim // 48)
        if dim % 4:
            raise UserError(f"config.dim {dim} must be a multiple of 4")
        if dim % heads:
            raise UserError(f"{heads} heads do not divide dim {dim}; set config.heads")
        self.neg_weight = config.strength / dim
        embed = nn.Linear(self.backbone.width, dim)
        initialise(embed)
        self.projector = nn.Sequential(embed, *token_blocks(dim, heads, config.projector_depth, config.norm))
        self.decoder = CrossViewDecoder(
            dim,
            dim if config.target == "feature" else 3 * self.backbone.patch_size**2,
            grid=self.backbone.grid,
            heads=heads,
            depth=config.decoder_depth,
            norm=config.norm,
        )
        self.moments = nn.ModuleDict()
        if config.target == "feature":
            self.target_backbone = make_momentum_encoder(self.backbone)
            self.target_projector = make_momentum_encoder(self.projector)
        if config.form == "v1":
            for name in self.weights():
                self.moments[name] = RunningMoment(dim, config.moment_decay)

    def weights(self) -> dict[str, float]:
        """Loss parts in use and their weights."""
        both = {"dense": self.config.dense_weight, "global": self.config.global_weight}
        return {name: weight for name, weight in both.items() if weight > 0}

    def step(self, batch: Batch) -> Output:
        """Predict every patch of the whole second view from the seen patches of the first."""
        seen, _ = split(draw_mask(self.mask, batch, self.backbone.grid, seed=self.seed), self.hidden)
        prediction = self.predict(batch, seen)
        if self.config.target == "pixel":
            return self.compare_pixels(prediction, batch.views[1])
        compare = self.compare if self.config.form == "released" else self.compare_v1
        return compare(prediction, self.targets(batch.views[1]))

    def predict(self, batch: Batch, seen: Tensor) -> Tensor:
        """Encode the seen patches (B, K) of x1 and predict x2, (B, N, D)."""
        tokens = self.projector(self.backbone.tokens(batch.views[0], seen))
        predicted: Tensor = self.decoder(tokens, seen, batch.geometry[0], batch.geometry[1])
        return predicted

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Patch tokens of the whole x2 from the slow copy, (B, N, D); the class token is dropped."""
        tokens: Tensor = self.target_projector(self.target_backbone.tokens(images))
        return tokens[:, 1:]

    def compare(self, prediction: Tensor, target: Tensor) -> Output:
        """Released loss on every token and (an option) on their means."""
        level = collapse_level(prediction.shape[-1], self.neg_weight)
        loss, loss_terms, metrics = torch.zeros((), device=prediction.device), {}, {}
        for name, weight in self.weights().items():
            sides = (side if name == "dense" else side.mean(1, keepdim=True) for side in (prediction, target))
            found = unigrad_parts(*sides, neg_weight=self.neg_weight, average=reduce_mean)
            loss = loss + weight * found.loss
            loss_terms[name] = found.loss.detach()
            metrics[f"{name}/target_rank"], metrics[f"{name}/r2"] = found.effective_rank, found.r2
        return self.output(loss, loss_terms, metrics, target, level)

    def compare_v1(self, prediction: Tensor, target: Tensor) -> Output:
        """First version: UniGrad on unit vectors, of the means and of the tokens less their image's mean."""
        level = cosine_collapse_level(self.config.strength)
        loss, loss_terms, metrics = torch.zeros((), device=prediction.device), {}, {}
        for name, weight in self.weights().items():
            rows, wanted = (
                _centred(side) if name == "dense" else side.mean(1) for side in (prediction, target)
            )
            moment = cast(RunningMoment, self.moments[name])(l2_normalize(wanted))
            part = unigrad_cosine(rows, wanted, moment, strength=self.config.strength)
            loss = loss + weight * part
            loss_terms[name] = part.detach()
            metrics[f"{name}/target_rank"] = effective_rank(moment)
            metrics[f"{name}/cosine"] = (l2_normalize(rows.detach()) * l2_normalize(wanted)).sum(-1).mean()
        return self.output(loss, loss_terms, metrics, target, level)

    def output(
        self,
        loss: Tensor,
        loss_terms: dict[str, Tensor],
        metrics: dict[str, Tensor],
        target: Tensor,
        level: float,
    ) -> Output:
        """What both forms of the loss give; a term's reference is its value where all targets are alike."""
        return Output(
            loss=loss,
            loss_terms=loss_terms,
            metrics=metrics,
            embeddings=target.mean(1),
            references=dict.fromkeys(self.weights(), level),
        )

    def compare_pixels(self, prediction: Tensor, images: Tensor) -> Output:
        """Ablation: mean squared error to the normalised pixels of all patches of x2."""
        wanted = normalised_patches(patchify(images, self.backbone.patch_size))
        loss = (prediction.float() - wanted).square().mean()
        # a prediction of nothing: the mean square of a patch with unit unbiased variance
        chance = 1 - 1 / wanted.shape[-1]
        return Output(loss=loss, loss_terms={"pixel": loss.detach()}, references={"pixel": chance})

    def after_step(self, step: int, total: int) -> dict[str, float]:
        """Let the slow copies follow."""
        if self.config.target == "pixel":
            return {}
        momentum = cosine_momentum(self.config.momentum, step, total)
        copies = [self.target_backbone, self.target_projector]
        update_momentum(copies, [self.backbone, self.projector], momentum)
        return {"schedule/momentum": momentum}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Pixels]:
        """For one cell of x2: which of its cells have a like target, and which are like the prediction."""
        if self.config.target == "pixel":
            return {}
        mask = draw_mask(self.mask, batch, self.backbone.grid, seed=self.seed)
        prediction = self.predict(batch, split(mask, self.hidden)[0])
        first, second = batch.views
        title = (
            "Masked view; whole view with a chosen cell; cosine of every cell's target with the chosen "
            "cell's target; and with the prediction for the chosen cell"
        )
        targets, inputs = self.targets(second), self.backbone.inputs
        return {title: similarity_picture(first, second, mask, targets, prediction, inputs=inputs)}


class RunningMoment(nn.Module):
    """Moving average of t t^T over steps and processes, unbiased from the first step on."""

    def __init__(self, dim: int, decay: float) -> None:
        """Start empty, (D, D)."""
        super().__init__()
        self.decay = decay
        self.register_buffer("total", torch.zeros(dim, dim))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def forward(self, rows: Tensor) -> Tensor:
        """Take in (M, D) rows while training and give the average, (D, D)."""
        total, weight = cast(Tensor, self.total), cast(Tensor, self.weight)
        if self.training:
            total.lerp_(reduce_mean(second_moment(rows)).to(total.dtype), 1 - self.decay)
            weight.lerp_(torch.ones_like(weight), 1 - self.decay)
        return total / weight.clamp_min(1e-6)


def _centred(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) less their image's mean, as rows (B*N, D)."""
    return (tokens - tokens.mean(1, keepdim=True)).flatten(0, 1)

"""Masked autoencoder (He et al., arXiv 2111.06377): from a quarter of the patches, predict the rest.

Shape legend: B images of this process, N patches, K seen patches, n = C*P*P numbers of a patch of C channels.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from ...common.config import Depth, Width
from ...common.types import Pixels
from ...data.loading.batch import NO_PHOTOMETRIC, Batch, CropFilter, Needs, PhotometricPolicy
from ...models.backbones.base import Backbone
from ...models.backbones.vit import ViTBackbone, require_vit
from ...models.decoders import HiddenPatchDecoder
from ...models.tokens import patchify, take_tokens
from ..losses.common import to_float32
from ..losses.tokens import normalised_patches, patch_scale
from ..modules.patch_masking import ForegroundBias, MaskPolicy, MaskRatio, draw_mask, split
from .base import Context, Method, Output
from .shared.pictures import reconstruction_picture
from .shared.views import ViewConfig


class MAEConfig(ViewConfig):
    """MAE as published; numbers from section 4 and table 8."""

    mask_ratio: MaskRatio = 0.75
    mask_pattern: Literal["random", "block"] = "random"
    foreground_bias: ForegroundBias = 0.0  # ours: hide the foreground more (above 0) or less; needs masks
    decoder_dim: Width = 512
    decoder_depth: Depth = 8
    decoder_heads: Width = 16
    normalise: bool = True  # targets patch by patch to zero mean and unit variance
    crop_filter: CropFilter = "bicubic"
    photometric: PhotometricPolicy = NO_PHOTOMETRIC  # crop and flip only

    @model_validator(mode="after")
    def _check_decoder(self) -> Self:
        """Refuse a width that heads and positions do not divide."""
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 4:
            raise ValueError(
                f"decoder_dim {self.decoder_dim} must be a multiple of 4 and of {self.decoder_heads} heads"
            )
        return self

    def mask_policy(self) -> MaskPolicy:
        """Which patches are hidden."""
        return MaskPolicy(
            ratio=self.mask_ratio, pattern=self.mask_pattern, foreground_bias=self.foreground_bias
        )


class MAE(Method):
    """Encoder on the seen patches only; a narrow decoder on all places predicts the hidden pixels."""

    name = "mae"
    source = "He et al., Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377"
    Config: ClassVar[type[MAEConfig]] = MAEConfig

    @classmethod
    def needs(cls, config: MAEConfig, backbone: Backbone, *, image_size: int) -> Needs:
        """One view; masks only where they decide which patches are hidden."""
        masks = backbone.cells_per_side(image_size) if config.foreground_bias else None
        return Needs(views=(config.view(image_size),), grid=masks, min_foreground=0.0)

    def __init__(self, config: MAEConfig, context: Context, backbone: Backbone) -> None:
        """Build the decoder on the backbone's grid."""
        super().__init__()
        self.config, self.seed = config, context.seed
        self.backbone: ViTBackbone = require_vit(backbone, self.name)
        self.mask = config.mask_policy()
        self.hidden = self.mask.count(self.backbone.grid)
        self.decoder = HiddenPatchDecoder(
            self.backbone.width,
            config.decoder_dim,
            self.backbone.in_channels * self.backbone.patch_size**2,
            grid=self.backbone.grid,
            heads=config.decoder_heads,
            depth=config.decoder_depth,
        )

    def step(self, batch: Batch) -> Output:
        """Mean squared error on the hidden patches."""
        (images,) = batch.views
        seen, hidden = split(self.draw(batch), self.hidden)
        predicted = to_float32(take_tokens(self.predict(images, seen), hidden))
        patches = take_tokens(patchify(images, self.backbone.patch_size), hidden)
        wanted = normalised_patches(patches) if self.config.normalise else to_float32(patches)
        loss = (predicted - wanted).square().mean()
        # predicting nothing: the mean square of a patch whose unbiased variance is 1
        chance = {"reconstruction": 1 - 1 / wanted.shape[-1]} if self.config.normalise else {}
        return Output(loss=loss, loss_terms={"reconstruction": loss.detach()}, references=chance)

    def draw(self, batch: Batch) -> Tensor:
        """Which patches are hidden, (B, N) bool."""
        return draw_mask(self.mask, batch, self.backbone.grid, seed=self.seed)

    def predict(self, images: Tensor, seen: Tensor) -> Tensor:
        """Predicted patches (B, N, n) from the seen ones' places (B, K)."""
        predicted: Tensor = self.decoder(self.backbone.tokens(images, seen), seen)
        return predicted

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Pixels]:
        """Image, what the encoder sees, and the prediction in the hidden places."""
        (images,) = batch.views
        mask = self.draw(batch)
        prediction = to_float32(self.predict(images, split(mask, self.hidden)[0]))
        patches = patchify(images, self.backbone.patch_size)
        # the prediction lacks each patch's mean and contrast: lend it the true ones
        if self.config.normalise:
            mean, deviation = patch_scale(patches)
            prediction = prediction * deviation + mean
        title = "Image; what the encoder sees; seen patches and predicted ones"
        title += " (with the true mean and contrast of each patch)" if self.config.normalise else ""
        side, inputs = self.backbone.patch_size, self.backbone.inputs
        return {title: reconstruction_picture(images, mask, prediction, patches, side, inputs=inputs)}

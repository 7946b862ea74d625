"""The pixel term that HAPiCL's systems share: settings, labels, loss over all processes, health.

Shape legend: B images of this process, D embedding, S cells per side, P = S*S.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, model_validator
from torch import Tensor, nn

from ....common.config import Fraction, NotNegative, Positive, Width
from ....common.errors import UserError
from ....data.loading.batch import Batch, Needs, ViewPolicy
from ....engine.distributed import gather, reduce_mean
from ....models.backbones.base import Backbone
from ....models.heads import dense_projection_head
from ...losses import PixelForm, cell_labels, pixel_terms
from ...losses.common import l2_normalize
from ...losses.pixel import cell_pairs
from ..base import Output
from .views import Redraws, ViewConfig


def _apart(band: tuple[float, float]) -> tuple[float, float]:
    if not band[0] < band[1]:
        raise ValueError("give two occupancies, the lower one first")
    return band


class PixelConfig(ViewConfig):
    """Settings of the pixel loss; where the authors' papers leave a choice, the default is this project's."""

    pixel_weight: NotNegative = 1.0
    pixel_temperature: Positive = 0.2
    form: PixelForm = "image"
    background_positives: bool = True
    negatives: Literal["image", "batch"] = "image"
    label_rule: Literal["area", "any"] = "area"
    foreground_threshold: Fraction = 0.5
    # occupancies between the two are in no pair
    ignore_band: Annotated[tuple[Fraction, Fraction], AfterValidator(_apart)] | None = None
    feature_level: Literal["layer4", "layer3", "both"] = "layer4"
    pixel_head: Literal["default", "released"] = "default"
    pixel_hidden: Width | None = None  # None: the preset's, 2048 by default
    pixel_dim: Width | None = None  # None: the preset's, 256 by default
    min_foreground: Fraction = 0.3  # a crop with less is redrawn; 0 turns it off
    redraws: Redraws = 5

    @model_validator(mode="after")
    def _check_pixel_term(self) -> Self:
        """Refuse what the form or the preset does not know."""
        if self.negatives == "batch" and self.form.endswith("released"):
            raise ValueError(
                f"form {self.form!r} takes the image's own negatives; "
                "use form image or anchor with negatives=batch"
            )
        if self.pixel_head == "released" and (self.pixel_hidden or self.pixel_dim):
            raise ValueError("pixel_head=released fixes pixel_hidden and pixel_dim: leave those out")
        return self

    def pixel_needs(self, views: tuple[ViewPolicy, ...], backbone: Backbone, *, image_size: int) -> Needs:
        """Masks on the grid of the chosen feature level, with foreground-aware redraws."""
        level = "layer3" if self.feature_level == "layer3" else None
        grid = backbone.cells_per_side(image_size, level)
        return Needs(views=views, grid=grid, min_foreground=self.min_foreground, redraws=self.redraws)


def build_pixel_head(config: PixelConfig, backbone: Backbone, *, released: tuple[int, int]) -> nn.Sequential:
    """Build the pixel head on the map(s) that the config names.

    Args:
        config: level and sizes.
        backbone: gives the channels.
        released: hidden and output width of the authors' runs, for the preset.
    """
    levels = ("layer3", "layer4") if config.feature_level == "both" else (config.feature_level,)
    if not all(level in backbone.channels for level in levels):
        raise UserError(
            f"feature_level {config.feature_level!r} needs the maps {', '.join(levels)}, but the backbone "
            f"has {', '.join(backbone.channels)}; choose a ResNet, or a network of timm's that has them"
        )
    channels = sum(backbone.channels[level] for level in levels)
    hidden, dim = (
        released
        if config.pixel_head == "released"
        else (config.pixel_hidden or 2048, config.pixel_dim or 256)
    )
    return dense_projection_head(channels, hidden, dim, batch_norm=True)


def pixel_map(maps: dict[str, Tensor], config: PixelConfig) -> Tensor:
    """Select the map(s) for the pixel head, (B, C, S, S).

    `both` averages layer3 onto layer4's grid and concatenates.
    """
    if config.feature_level != "both":
        return maps[config.feature_level]
    last = maps["layer4"]
    return torch.cat([F.adaptive_avg_pool2d(maps["layer3"], (last.shape[2], last.shape[3])), last], dim=1)


def view_labels(batch: Batch, config: PixelConfig) -> list[Tensor]:
    """Cell labels of each view, (B, P) each."""
    return [
        cell_labels(
            occupancy,
            rule=config.label_rule,
            threshold=config.foreground_threshold,
            ignore=config.ignore_band,
        )
        for occupancy in batch.occupancy
    ]


def pixel_output(
    pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]], batch: Batch, config: PixelConfig
) -> Output:
    """Mean pixel loss over directions, with what is worth logging.

    Args:
        pairs: (u1, u2, m1, m2) of each direction: maps (B, D, S, S) and labels (B, P).
        batch: gives which images have a mask and which crops fell back.
        config: form and options.
    """
    flat = [(u1.flatten(2), u2.flatten(2), m1, m2) for u1, u2, m1, m2 in pairs]
    terms, counts = zip(*(_global_terms(*pair, batch.has_mask, config) for pair in flat), strict=True)
    loss = torch.stack(terms).mean()
    metrics = {"pixel/dropped_fraction": 1 - torch.stack(counts).mean()}
    with torch.no_grad(), torch.autocast(loss.device.type, enabled=False):
        metrics |= _health(*flat[0], batch.has_mask, config)
        if batch.fallback is not None:
            metrics["mask/redraw_fallback_fraction"] = batch.fallback.float().mean()
        if batch.has_mask is not None:
            metrics["mask/missing_fraction"] = 1 - batch.has_mask.float().mean()
    return Output(loss=loss, loss_terms={"pixel": loss.detach()}, metrics=metrics)


def _global_terms(
    u1: Tensor, u2: Tensor, m1: Tensor, m2: Tensor, valid: Tensor | None, config: PixelConfig
) -> tuple[Tensor, Tensor]:
    """Loss of one direction as one process with the joined batch has it, and the share of images counted."""
    whole_batch = config.negatives == "batch" or config.form == "batch_released"
    if whole_batch:
        u1, u2, m1, m2 = gather(u1), gather(u2), gather(m1), gather(m2)
        valid = None if valid is None else gather(valid)
    terms, counted = pixel_terms(
        u1,
        u2,
        m1,
        m2,
        temperature=config.pixel_temperature,
        form=config.form,
        background_positives=config.background_positives,
        negatives=config.negatives,
        valid=valid,
    )
    fraction = counted.to(terms.dtype).mean()
    if not whole_batch:
        fraction = reduce_mean(fraction)
    # over the images that count in the global batch; all processes' means average to it
    return terms.mean() / fraction.clamp(min=1 / (2**20)), fraction


def _health(
    u1: Tensor, u2: Tensor, m1: Tensor, m2: Tensor, valid: Tensor | None, config: PixelConfig
) -> dict[str, Tensor]:
    """Similarities within and across the labels, their gap, and the loss at chance of the form `image`.

    Means over all pairs of the images that have a mask; labels as the loss sees them, backgrounds alike.
    """
    cosine = torch.einsum("bdi,bdj->bij", l2_normalize(u1, dim=1), l2_normalize(u2, dim=1))
    within, across = cell_pairs(m1, m2, background_positives=True)
    attract, repel = cell_pairs(m1, m2, background_positives=config.background_positives)
    if valid is not None:
        within, across = within & valid[:, None, None], across & valid[:, None, None]
        attract, repel = attract & valid[:, None, None], repel & valid[:, None, None]
    same = (cosine * within).sum() / within.sum().clamp(min=1)
    other = (cosine * across).sum() / across.sum().clamp(min=1)
    positives, negatives = attract.flatten(1).sum(dim=1), repel.flatten(1).sum(dim=1)
    counted = (positives > 0) & (negatives > 0)
    chance = torch.where(counted, ((positives + negatives) / positives.clamp(min=1)).log(), 0.0)
    metrics = {
        "pixel/similarity_positive": same,
        "pixel/similarity_negative": other,
        "pixel/similarity_gap": same - other,
        "mask/foreground_fraction": (m1 > 0).float().mean(),
        "mask/empty_fraction": 1 - (m1 > 0).any(dim=1).float().mean(),
    }
    if config.form == "image" and config.negatives == "image":  # the others have no such closed form
        metrics["chance/pixel"] = chance.sum() / counted.sum().clamp(min=1)
    return metrics


def add_pixel_loss(instance: Output, pixel: Output | None, weight: float) -> Output:
    """Instance term plus weighted pixel term; None leaves the instance term as it is."""
    if pixel is None:
        return instance
    return Output(
        loss=instance.loss + weight * pixel.loss,
        loss_terms=instance.loss_terms | pixel.loss_terms,
        metrics=instance.metrics | pixel.metrics,
        embeddings=instance.embeddings,
        references=instance.references | pixel.references,
    )

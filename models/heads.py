"""Heads on a backbone's map.

Shape legend: B images, C map channels, H hidden, D embedding, S cells per side.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn


def global_average_pool(features: Tensor) -> Tensor:
    """Global average pool, (B, C, S, S) to (B, C)."""
    return features.mean(dim=(2, 3))


def projection_head(channels: int, hidden: int, out: int, *, batch_norm: bool) -> nn.Sequential:
    """Linear(C, H), ReLU, Linear(H, D) on pooled vectors.

    Args:
        channels, hidden, out: C, H and D.
        batch_norm: BatchNorm after the first layer (SimCLR, BYOL), whose bias then goes; else none (MoCo).
    """
    layers: list[nn.Module] = [nn.Linear(channels, hidden, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(hidden))
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Linear(hidden, out))


def batch_norm_head(
    *widths: int, last: Literal["plain", "scaled", "bias", "none"] = "plain"
) -> nn.Sequential:
    """Linear layers without bias, BatchNorm after each, ReLU between them, on pooled vectors.

    Args:
        widths: of the input, of every hidden layer, and D.
        last: what follows the last layer: `plain` BatchNorm without weight and bias (MoCo v3), BatchNorm
            `scaled` by a weight but not shifted (SimCLR), its own `bias` alone, or `none` of these.
    """
    layers: list[nn.Module] = []
    *hidden, width, out = widths
    for before, after in pairwise([*hidden, width]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(width, out, bias=last == "bias"))
    if last in ("plain", "scaled"):
        norm = nn.BatchNorm1d(out, affine=last == "scaled")
        if norm.affine:
            norm.bias.requires_grad_(False)  # it stays at its initial 0
        layers.append(norm)
    return nn.Sequential(*layers)


def dense_projection_head(channels: int, hidden: int, out: int, *, batch_norm: bool) -> nn.Sequential:
    """Give the same as `projection_head` for every cell by 1x1 convolutions, (B, C, S, S) to (B, D, S, S)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(hidden))
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Conv2d(hidden, out, 1))

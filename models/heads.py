"""Heads on a backbone's map.

Shape legend: B images, C map channels, H hidden, D embedding, S cells per side.
"""

from __future__ import annotations

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


def dense_projection_head(channels: int, hidden: int, out: int, *, batch_norm: bool) -> nn.Sequential:
    """Give the same as `vector_head` for every cell by 1x1 convolutions, (B, C, S, S) to (B, D, S, S)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(hidden))
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Conv2d(hidden, out, 1))

"""A map made larger or smaller by learnt layers: how a ViT's maps of one stride become a pyramid.

Shape legend: B images, C channels, S cells per side.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

FACTORS = (4.0, 2.0, 1.0, 0.5)  # of a pyramid with strides 4, 8, 16 and 32 from patches of 16 pixels


def rescaling(
    channels: int, factor: float, norm: Callable[[int], nn.Module], *, halve: bool
) -> nn.Sequential:
    """Layers from a map (B, C, S, S) to one of `factor` times as many cells per side.

    Each doubling is a transposed convolution of 2 x 2, with `norm` and GELU between two of them; halving is a
    max pool, and 1 has no layers. BEiT's and MAE's UPerNet and ViTDet's simple feature pyramid (arXiv
    2203.16527, section 3) have these layers.

    Args:
        channels: C.
        factor: one of `FACTORS`.
        norm: builds the normalisation of so many channels.
        halve: whether each doubling halves the channels (ViTDet) or keeps them (UPerNet).
    """
    half = channels // 2 if halve else channels
    quarter = half // 2 if halve else channels
    if factor == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, 2),
            norm(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
        )
    if factor == 2:
        return nn.Sequential(nn.ConvTranspose2d(channels, half, 2, 2))
    if factor == 1:
        return nn.Sequential()
    if factor == 0.5:
        return nn.Sequential(nn.MaxPool2d(2, 2))
    raise ValueError(f"factor {factor}: maps are rescaled by {FACTORS}")

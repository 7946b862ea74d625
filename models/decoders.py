"""Decoders over tokens: SiameseIM's, which predicts another view, and MAE's, which predicts hidden patches.

Shape legend: B images, S cells per side, N = S*S patches, K seen patches, C width of the tokens given, D
width of the decoder.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.geometry import ViewGeometry
from ..data.positions import relative_position_parts, sincos_table
from .tokens import BlockNorm, initialise, take_tokens, token_blocks


class CrossViewDecoder(nn.Module):
    """Predicts every patch of view x2 from the seen patches of view x1 and where x2 lies in x1.

    SiameseIM, arXiv 2206.01204, section 3.2.
    """

    def __init__(self, dim: int, out: int, *, grid: int, heads: int, depth: int, norm: BlockNorm) -> None:
        """Build for a grid of S x S; tokens come in width D = `dim`, predictions leave in width `out`."""
        super().__init__()
        self.dim, self.grid = dim, grid
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.relative = nn.Linear(2 * dim, dim)
        self.blocks = token_blocks(dim, heads, depth, norm)
        self.out = nn.Linear(dim, out)
        initialise(self.relative)
        initialise(self.out)
        self.register_buffer("table", sincos_table(grid, dim)[None].float(), persistent=False)

    def forward(self, tokens: Tensor, seen: Tensor, first: ViewGeometry, second: ViewGeometry) -> Tensor:
        """Predict x2.

        Args:
            tokens: (B, 1 + K, D) of x1, the class token (which has no position) first.
            seen: (B, K) their places in x1.
            first, second: geometry of x1 and x2.

        Returns:
            (B, N, out), row-major patches of x2.
        """
        table = cast(Tensor, self.table).expand(len(tokens), -1, -1)
        asked = self.mask_token + self.positions(first, second)
        placed = tokens[:, 1:] + take_tokens(table, seen)
        values = torch.cat([tokens[:, :1], placed, asked.to(placed.dtype)], dim=1)
        predicted: Tensor = self.out(self.blocks(values)[:, -(self.grid**2) :])
        return predicted

    def positions(self, first: ViewGeometry, second: ViewGeometry) -> Tensor:
        """Learnt linear map of the relative positions, (B, N, D), without forming their (B, N, 2*D)."""
        rows, columns, scale = relative_position_parts(first, second, self.grid, self.dim)
        half = self.dim // 2
        weights = torch.split(self.relative.weight, [half, half, self.dim], dim=1)
        by_row, by_column, by_scale = (
            functional.linear(part.to(weight.dtype), weight)
            for part, weight in zip((rows, columns, scale), weights, strict=True)
        )
        cells = by_row[:, :, None] + by_column[:, None, :] + by_scale[:, None, None]
        return cells.flatten(1, 2) + self.relative.bias


class HiddenPatchDecoder(nn.Module):
    """Predicts the pixels of every patch from the seen ones (MAE, arXiv 2111.06377, section 3)."""

    def __init__(self, width: int, dim: int, out: int, *, grid: int, heads: int, depth: int) -> None:
        """Build for a grid of S x S; tokens come in width C = `width`, predictions leave in width `out`."""
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = token_blocks(dim, heads, depth, "layer")
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, out)
        initialise(self.embed)
        initialise(self.out)
        self.register_buffer("table", sincos_table(grid, dim)[None].float(), persistent=False)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Predict pixels.

        Args:
            tokens: (B, 1 + K, C), the class token first.
            seen: (B, K) the places of the others.

        Returns:
            (B, N, out), row-major patches, the seen ones too.
        """
        values = self.embed(tokens)
        cells = self.mask_token.to(values.dtype).repeat(len(values), self.grid**2, 1)
        cells = cells.scatter(1, seen[:, :, None].expand(-1, -1, values.shape[2]), values[:, 1:])
        values = torch.cat([values[:, :1], cells + cast(Tensor, self.table).to(values.dtype)], dim=1)
        predicted: Tensor = self.out(self.norm(self.blocks(values)))
        return predicted[:, 1:]

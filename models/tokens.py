"""Tokens: images cut into patches and back, kept ones taken, and transformer blocks for heads and decoders.

Shape legend: B images, N tokens or patches, K kept ones, C channels or width, D width, S cells per side, P
patch side.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

BlockNorm = Literal["batch", "layer"]


class TokenBatchNorm(nn.Module):
    """BatchNorm over batch and tokens together, in float32, in the place of a block's LayerNorm.

    The BatchNorm is a child, so the trainer synchronises it over processes like any other.
    """

    def __init__(
        self, dim: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Take the arguments that timm's blocks give to their norm."""
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, device=device, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to the same shape and type."""
        with torch.autocast(tokens.device.type, enabled=False):
            rows = tokens.reshape(-1, tokens.shape[-1])
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            normalised: Tensor = self.norm(rows)
        return normalised.to(tokens.dtype).view_as(tokens)


def token_blocks(dim: int, heads: int, depth: int, norm: BlockNorm) -> nn.Sequential:
    """Build timm's pre-norm transformer blocks, Xavier-initialised, for projectors and decoders.

    Args:
        dim: D.
        heads: attention heads; they divide D.
        depth: number of blocks.
        norm: `batch`: BatchNorm over batch x tokens in float32; `layer`: LayerNorm.
    """
    layer = TokenBatchNorm if norm == "batch" else nn.LayerNorm
    blocks = nn.Sequential(
        *(Block(dim, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=layer) for _ in range(depth))
    )
    initialise(blocks)
    return blocks


def initialise(module: nn.Module) -> None:
    """Xavier's uniform draw for every linear layer, zero for its bias (Glorot and Bengio, AISTATS 2010)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def take_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """(B, N, C) tokens and (B, K) indices to (B, K, C)."""
    return tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[2]))


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches.

    Args:
        images: (B, C, H, W), sides multiples of the patch.
        patch_size: P, pixels.

    Returns:
        (B, N, C*P*P), row-major cells; within a patch channel, row, column.
    """
    return functional.unfold(images, patch_size, stride=patch_size).transpose(1, 2)


def unpatchify(patches: Tensor, patch_size: int, grid: int) -> Tensor:
    """Inverse of `patchify`: (B, S*S, C*P*P) to (B, C, S*P, S*P)."""
    return functional.fold(
        patches.transpose(1, 2), grid * patch_size, kernel_size=patch_size, stride=patch_size
    )

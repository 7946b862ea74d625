"""Attention of a plain ViT over the grid of its patches: within windows, or over the whole of a large image.

Shape legend: B images, C width, H and W patches per side of the grid.
"""

from __future__ import annotations

from typing import Any

from timm.models.swin_transformer import window_partition, window_reverse
from timm.models.vision_transformer_sam import Attention
from torch import Tensor, nn
from torch.nn import functional

from ..common.errors import UserError
from .backbones.vit import ViTBackbone


class GridAttention(Attention):
    """timm's attention with relative positions (those of SAM and ViTDet), perhaps within windows.

    Takes the place of a plain ViT's attention, whose layers and names it keeps; `rel_pos_h` and `rel_pos_w`
    are new and start at 0, where they change nothing. A window that is not full at the right or the bottom is
    padded with zeros behind the block's first LayerNorm, as in detectron2; a grid smaller than the window is
    one window without padding.
    """

    def __init__(self, plain: Any, *, window: int | None, cells: int) -> None:
        """Take over an attention of timm's.

        Args:
            plain: of a `timm.models.vision_transformer.Block`.
            window: patches per side of a window; None attends to the whole grid.
            cells: patches per side of the largest grid, for the tables of a whole grid; tables are
                interpolated to another size, as in detectron2.
        """
        side = window or cells
        super().__init__(
            plain.qkv.in_features,
            num_heads=plain.num_heads,
            use_rel_pos=True,
            input_size=(side, side),
        )
        self.qkv, self.q_norm, self.k_norm, self.proj = plain.qkv, plain.q_norm, plain.k_norm, plain.proj
        self.window = window

    def forward(self, tokens: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """(B, H, W, C) to the same shape."""
        if self.window is None:
            whole: Tensor = super().forward(tokens)  # type: ignore[no-untyped-call]
            return whole
        rows, columns = tokens.shape[1:3]
        window = (min(self.window, rows), min(self.window, columns))
        padded = functional.pad(tokens, (0, 0, 0, -columns % window[1], 0, -rows % window[0]))
        parts = super().forward(window_partition(padded, window))  # type: ignore[no-untyped-call]
        joined: Tensor = window_reverse(parts, window, padded.shape[1], padded.shape[2])
        return joined[:, :rows, :columns]


def attend_in_windows(backbone: ViTBackbone, *, window: int, global_blocks: int, cells: int) -> None:
    """Let most blocks of a ViT attend within windows; from then on its blocks take grids, (B, H, W, C).

    Args:
        backbone: changed in place.
        window: patches per side.
        global_blocks: how many blocks attend to the whole grid: evenly spaced, the last one among them.
        cells: patches per side of the largest grid.

    Raises:
        UserError: for blocks of another make.
    """
    blocks = backbone.trunk.blocks
    depth = len(blocks)
    everywhere = {round(number * depth / global_blocks) - 1 for number in range(1, global_blocks + 1)}
    for number, block in enumerate(blocks):
        if not _is_plain(block.attn):
            raise UserError(
                "windows need the attention of a plain Vision Transformer; choose a backbone such as "
                "vit_small_patch16_224 or vit_base_patch16_224"
            )
        block.attn = GridAttention(block.attn, window=None if number in everywhere else window, cells=cells)


def _is_plain(attention: nn.Module) -> bool:
    """Whether an attention has no other layers than those that are taken over."""
    layers = {
        name for name, part in attention.named_children() if not isinstance(part, nn.Identity | nn.Dropout)
    }
    return {"qkv", "proj"} <= layers <= {"qkv", "q_norm", "k_norm", "proj"}

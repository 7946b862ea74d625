"""Windows of a plain ViT: which blocks have them, what they see, and what pads them."""

import pytest
import torch
from small_vit import small_vit
from torch import Tensor

from hapicl.common.errors import UserError
from hapicl.models.backbones.build import build_backbone
from hapicl.models.backbones.vit import ViTBackbone
from hapicl.models.window_attention import attend_in_windows


def grids(backbone: ViTBackbone, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = backbone.trunk.blocks(tokens)
    return found


def test_which_blocks_see_the_whole_image() -> None:
    def everywhere(arch: str) -> list[int]:
        with torch.device("meta"):
            backbone = build_backbone(arch, image_size=64)
            assert isinstance(backbone, ViTBackbone)
            attend_in_windows(backbone, window=14, global_blocks=4, cells=64)
        return [number for number, block in enumerate(backbone.trunk.blocks) if block.attn.window is None]

    assert everywhere("vit_base_patch16_224") == [2, 5, 8, 11]  # as published
    assert everywhere("vit_large_patch16_224") == [5, 11, 17, 23]


def test_a_window_that_holds_the_grid_is_plain_attention() -> None:
    torch.manual_seed(0)
    plain, windowed = small_vit().eval(), small_vit().eval()
    windowed.load_state_dict(plain.state_dict())
    attend_in_windows(windowed, window=14, global_blocks=1, cells=8)
    tokens = torch.randn(2, 5, 6, 48)
    expected = grids(plain, tokens.flatten(1, 2)).unflatten(1, (5, 6))
    torch.testing.assert_close(grids(windowed, tokens), expected)


def test_windows_do_not_see_each_other_and_cut_grids_with_a_rest() -> None:
    torch.manual_seed(0)
    backbone = small_vit().eval()
    attend_in_windows(backbone, window=4, global_blocks=1, cells=8)
    backbone.trunk.blocks = backbone.trunk.blocks[:1]  # the last block sees all
    tokens = torch.randn(1, 6, 7, 48)  # windows of 4: two by two, the last rows and columns padded
    changed = tokens.clone()
    changed[0, 5, 6] += 1  # in the window at the bottom right
    moved = (grids(backbone, tokens) - grids(backbone, changed)).abs().amax(-1)[0] > 0
    expected = torch.zeros(6, 7, dtype=torch.bool)
    expected[4:, 4:] = True
    assert torch.equal(moved, expected)
    attention = backbone.trunk.blocks[0].attn
    corner = torch.nn.functional.pad(tokens[:, 4:, 4:], (0, 0, 0, 1, 0, 2))
    with torch.no_grad():  # zeros stand for the tokens that a window lacks, as in detectron2
        window = super(type(attention), attention).forward(corner)[:, :2, :3]
        torch.testing.assert_close(attention(tokens)[:, 4:, 4:], window)


def test_relative_positions_change_what_a_whole_grid_gives() -> None:
    torch.manual_seed(0)
    backbone = small_vit().eval()
    attend_in_windows(backbone, window=4, global_blocks=2, cells=8)
    tokens = torch.randn(1, 8, 8, 48)
    before = grids(backbone, tokens)
    with torch.no_grad():
        backbone.trunk.blocks[0].attn.rel_pos_w[8] = 3.0  # the token one to the left
    assert not torch.allclose(grids(backbone, tokens), before)


def test_attention_of_another_make_is_refused() -> None:
    backbone = small_vit()
    backbone.trunk.blocks[1].attn.gate = torch.nn.Linear(48, 48)
    with pytest.raises(UserError, match="a plain Vision Transformer"):
        attend_in_windows(backbone, window=4, global_blocks=1, cells=8)

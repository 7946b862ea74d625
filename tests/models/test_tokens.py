"""Tokens: patches and back, kept ones against indexing, blocks whose norm is the one asked for."""

import pytest
import torch
from torch import nn

from hapicl.models.tokens import TokenBatchNorm, patchify, take_tokens, token_blocks, unpatchify


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_blocks_norm_over_what_they_say(norm: str) -> None:
    torch.manual_seed(0)
    blocks = token_blocks(48, 3, 2, norm)  # type: ignore[arg-type]
    kinds = {type(part) for part in blocks.modules()}
    assert (TokenBatchNorm in kinds, nn.LayerNorm in kinds) == (norm == "batch", norm == "layer")
    tokens = torch.randn(2, 5, 48)
    alone, together = blocks(tokens[:1]), blocks(tokens)[:1]
    assert torch.allclose(alone, together, atol=1e-5) == (norm == "layer")


def test_token_batch_norm_normalises_over_batch_and_tokens_in_float32() -> None:
    norm = TokenBatchNorm(6)
    tokens = (torch.randn(4, 5, 6) * 3 + 100).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = norm(tokens)
    assert got.dtype == torch.bfloat16
    rows = tokens.float().reshape(-1, 6)
    wanted = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(got.float().reshape(-1, 6), wanted, rtol=0.01, atol=0.01)


def test_patchify_against_slices_and_back() -> None:
    pictures = torch.randn(2, 3, 24, 24)
    patches = patchify(pictures, 8)
    assert patches.shape == (2, 9, 192)
    assert torch.equal(patches[1, 5], pictures[1, :, 8:16, 16:24].flatten())
    assert torch.equal(unpatchify(patches, 8, 3), pictures)


def test_take_tokens_against_indexing() -> None:
    tokens, keep = torch.randn(2, 6, 3), torch.tensor([[5, 0], [1, 1]])
    assert torch.equal(take_tokens(tokens, keep)[0], tokens[0, [5, 0]])
    assert torch.equal(take_tokens(tokens, keep)[1], tokens[1, [1, 1]])

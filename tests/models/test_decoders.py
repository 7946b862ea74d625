"""Decoders: positions by parts equal the whole, places follow the tokens."""

import pytest
import torch

from hapicl.data.geometry import ViewGeometry
from hapicl.data.positions import relative_positions, sincos_table
from hapicl.models.decoders import CrossViewDecoder, HiddenPatchDecoder


def geometry(images: int, seed: int) -> ViewGeometry:
    draw = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 30, (2, images), generator=draw)
    extents = torch.randint(10, 60, (2, images), generator=draw)
    flips = torch.rand(2, images, generator=draw) < 0.5
    return ViewGeometry(*corners, *extents, *flips)


@pytest.fixture
def decoder() -> CrossViewDecoder:
    torch.manual_seed(0)
    return CrossViewDecoder(24, 10, grid=5, heads=2, depth=1, norm="layer").double()


def test_learnt_positions_by_parts_equal_those_of_the_whole_embedding(decoder: CrossViewDecoder) -> None:
    first, second = geometry(3, 0), geometry(3, 1)
    whole = decoder.relative(relative_positions(first, second, 5, 24))
    torch.testing.assert_close(decoder.positions(first, second), whole)


def test_learnt_positions_need_no_embedding_of_every_cell(decoder: CrossViewDecoder) -> None:
    largest = 0

    def record(saved: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(record, lambda saved: saved):
        decoder.positions(geometry(40, 0), geometry(40, 1)).sum().backward()
    assert 0 < largest <= 40 * 5 * 24  # the whole would be 40 x 25 x 48


def test_the_order_of_seen_tokens_does_not_matter_but_their_places_do(decoder: CrossViewDecoder) -> None:
    tokens = torch.randn(2, 4, 24, dtype=torch.float64)
    seen = torch.tensor([[3, 7, 20], [0, 1, 2]])
    views = geometry(2, 0), geometry(2, 1)
    order = [0, 3, 1, 2]
    given = decoder(tokens, seen, *views)
    torch.testing.assert_close(decoder(tokens[:, order], seen[:, [2, 0, 1]], *views), given)
    assert not torch.allclose(decoder(tokens, seen.flip(1), *views), given)
    assert given.shape == (2, 25, 10)


def test_the_table_gives_the_seen_tokens_their_places(decoder: CrossViewDecoder) -> None:
    torch.testing.assert_close(decoder.table[0].double(), sincos_table(5, 24), rtol=0, atol=1e-6)
    assert not [name for name in decoder.state_dict() if "table" in name]


def test_hidden_patch_decoder_puts_seen_tokens_in_their_places() -> None:
    torch.manual_seed(0)
    decoder = HiddenPatchDecoder(12, 24, 7, grid=4, heads=2, depth=0)
    tokens, seen = torch.randn(1, 4, 12), torch.tensor([[9, 2, 15]])
    got = decoder(tokens, seen)[0]
    table = sincos_table(4, 24).float()
    for place, cell in enumerate(seen[0].tolist()):
        wanted = decoder.out(decoder.norm(decoder.embed(tokens[0, 1 + place]) + table[cell]))
        torch.testing.assert_close(got[cell], wanted)
    wanted = decoder.out(decoder.norm(decoder.mask_token[0, 0] + table[4]))
    torch.testing.assert_close(got[4], wanted)

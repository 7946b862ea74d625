"""Patch masks: exact counts, BEiT's blocks against a plain loop, counters, the foreground bias."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.data.loading.batch import Batch
from hapicl.pretrain.modules import patch_masking as masking
from hapicl.pretrain.modules.patch_masking import (
    MaskPolicy,
    block_mask,
    draw_mask,
    random_mask,
    smallest_block,
    split,
)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def batch(images: int, *, epoch: int = 0, step: int = 0, occupancy: Tensor | None = None) -> Batch:
    return Batch(
        index=torch.arange(images),
        image_size=torch.full((images, 2), 32),
        views=(torch.zeros(images, 3, 4, 4),),
        geometry=(),
        photometric=(),
        occupancy=() if occupancy is None else (occupancy,),
        epoch=epoch,
        step=step,
    )


def block_mask_loop(draws: np.ndarray, noise: np.ndarray, count: int) -> np.ndarray:
    """BEiT's algorithm 1 for one image, cell by cell."""
    grid = math.isqrt(len(noise))
    least = max(1, round(16 / 196 * grid * grid))
    hidden = np.zeros((grid, grid), bool)
    for area_draw, aspect_draw, place_draw in draws:
        remaining = count - hidden.sum()
        area = least + area_draw * max(0, remaining - least)
        aspect = math.exp(math.log(0.3) + aspect_draw * (math.log(1 / 0.3) - math.log(0.3)))
        height, width = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if height >= grid or width >= grid:
            continue
        rows, columns = grid - height + 1, grid - width + 1
        top, left = divmod(min(int(place_draw * rows * columns), rows * columns - 1), columns)
        fresh = (~hidden[top : top + height, left : left + width]).sum()
        if 0 < fresh <= remaining:
            hidden[top : top + height, left : left + width] = True
    flat = hidden.flatten()
    free = [cell for cell in np.argsort(-noise) if not flat[cell]]
    flat[free[: count - flat.sum()]] = True
    return flat


@settings(deadline=None, max_examples=30)
@given(grid=st.integers(6, 16), ratio=st.floats(0.1, 0.9), seed=st.integers(0, 10**6))
def test_blocks_against_a_plain_loop(grid: int, ratio: float, seed: int) -> None:
    count = round(ratio * grid * grid)
    draws = uniform(4, 24, 3, seed=seed).double()
    noise = uniform(4, grid * grid, seed=seed + 1).double()
    got = block_mask(draws, noise, count)
    for row in range(4):
        wanted = block_mask_loop(draws[row].numpy(), noise[row].numpy(), count)
        assert np.array_equal(got[row].numpy(), wanted)


@settings(deadline=None, max_examples=40)
@given(
    grid=st.integers(6, 20),
    ratio=st.floats(0.05, 0.95),
    pattern=st.sampled_from(["random", "block"]),
    bias=st.sampled_from([0.0, -3.0, 5.0]),
    step=st.integers(0, 10**6),
)
def test_every_mask_has_exactly_the_count(
    grid: int, ratio: float, pattern: str, bias: float, step: int
) -> None:
    policy = MaskPolicy(ratio=ratio, pattern=pattern, foreground_bias=bias)  # type: ignore[arg-type]
    occupancy = uniform(3, grid, grid, seed=step)
    drawn = draw_mask(policy, batch(3, step=step, occupancy=occupancy), grid, seed=1)
    assert drawn.sum(1).tolist() == [round(ratio * grid * grid)] * 3


@pytest.mark.parametrize(
    ("grid", "count", "block"), [(14, 118, 16), (12, 87, 12), (8, 39, 5), (7, 29, 4), (6, 22, 3)]
)
def test_the_published_ratio_on_several_grids(grid: int, count: int, block: int) -> None:
    policy = MaskPolicy(ratio=0.602, pattern="block")
    assert policy.count(grid) == count
    assert smallest_block(grid) == block
    assert draw_mask(policy, batch(5), grid, seed=0).sum(1).tolist() == [count] * 5


def test_blocks_leave_almost_nothing_to_the_fill() -> None:
    """Two different fills on the same blocks differ in under 1 % of the hidden cells on either side."""
    grid, count = 14, 118
    draws, noise = uniform(400, masking.ATTEMPTS, 3), torch.zeros(400, grid * grid)
    filled = block_mask(draws, noise, count)
    rough = block_mask(draws, noise + 1 - 1e-3 * torch.arange(grid * grid), count)
    assert (filled ^ rough).sum() < 0.01 * 2 * count * 400


def test_hidden_cells_lie_in_blocks() -> None:
    """Hidden cells have far more hidden neighbours under blocks than under random masks."""

    def neighbours(pattern: str) -> float:
        policy = MaskPolicy(ratio=0.5, pattern=pattern)  # type: ignore[arg-type]
        square = draw_mask(policy, batch(200), 14, seed=0).view(200, 14, 14)
        return (square[:, 1:] & square[:, :-1]).float().mean().item()

    assert neighbours("random") == pytest.approx(0.25, abs=0.02)
    assert neighbours("block") > 0.4


def test_masks_depend_on_their_counters_only() -> None:
    policy = MaskPolicy(ratio=0.6, pattern="block")

    def draw(**changes: int) -> Tensor:
        seed = changes.pop("seed", 3)
        return draw_mask(
            policy, batch(4, epoch=changes.pop("epoch", 1), step=changes.pop("step", 2)), 8, seed=seed
        )

    reference = draw()
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(draw(), reference)
    for other in ({"seed": 4}, {"epoch": 2}, {"step": 3}):
        assert not torch.equal(draw(**other), reference)


def test_two_processes_draw_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = MaskPolicy(ratio=0.75)
    whole = draw_mask(policy, batch(6, step=5), 8, seed=0)
    monkeypatch.setattr(masking, "world_size", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(masking, "rank", lambda rank=rank: rank)
        halves.append(draw_mask(policy, batch(3, step=5), 8, seed=0))
    assert torch.equal(torch.cat(halves), whole)


def test_random_masks_are_uniform() -> None:
    noise = uniform(4000, 16)
    frequency = random_mask(noise, 12).float().mean(0)
    torch.testing.assert_close(frequency, torch.full((16,), 0.75), rtol=0, atol=0.03)


@pytest.mark.parametrize("pattern", ["random", "block"])
def test_the_bias_hides_the_foreground_more_or_less(pattern: str) -> None:
    occupancy = torch.zeros(300, 8, 8)
    occupancy[:, 2:6, 2:5] = 1

    def hidden_foreground(bias: float) -> float:
        policy = MaskPolicy(ratio=0.5, pattern=pattern, foreground_bias=bias)  # type: ignore[arg-type]
        drawn = draw_mask(policy, batch(300, occupancy=occupancy), 8, seed=0)
        return drawn.view(300, 8, 8)[occupancy > 0].float().mean().item()

    less, neutral, more = (hidden_foreground(bias) for bias in (-3.0, 0.0, 3.0))
    assert less < neutral - 0.15
    assert more > neutral + 0.1


def test_weighted_blocks_follow_the_weights_inside_the_grid() -> None:
    """A weight of e^8 on one corner draws a 2 x 2 block there, for any draw; no block leaves the grid."""
    grid = 6
    weight = torch.zeros(1, grid * grid)
    weight.view(grid, grid)[4:, 4:] = 40.0
    table = masking._integral(weight, grid)
    side = torch.tensor([2])
    for draw in (0.01, 0.5, 0.999):
        top, left = masking._weighted_place(torch.tensor([draw]), side, side, grid, table)
        assert (top.item(), left.item()) == (4, 4)
    flat = masking._integral(torch.zeros(1, grid * grid), grid)
    places = [
        masking._weighted_place(torch.tensor([draw]), side + 1, side, grid, flat)
        for draw in np.linspace(0, 0.9999, 50)
    ]
    assert {top.item() for top, _ in places} == set(range(4))
    assert {left.item() for _, left in places} == set(range(5))


def test_split_gives_seen_and_hidden_in_reading_order() -> None:
    mask = torch.tensor([[True, False, False, True], [False, True, True, False]])
    seen, hidden = split(mask, 2)
    assert seen.tolist() == [[1, 2], [0, 3]]
    assert hidden.tolist() == [[0, 3], [1, 2]]


def test_blocks_are_refused_on_small_grids_with_a_next_step() -> None:
    with pytest.raises(UserError, match=r"at least 6 x 6 patches, not 4 x 4.*--set stem=patch8"):
        MaskPolicy(ratio=0.602, pattern="block").count(4)
    assert MaskPolicy(ratio=0.75, pattern="random").count(4) == 12


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5])
def test_a_ratio_that_hides_nothing_or_all_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="ratio"):
        build(MaskPolicy, {"ratio": ratio})
    with pytest.raises(UserError, match="masks 0 of 4"):
        MaskPolicy(ratio=0.1).count(2)


def test_a_bias_without_masks_is_refused() -> None:
    with pytest.raises(UserError, match="--masks"):
        draw_mask(MaskPolicy(ratio=0.5, foreground_bias=1.0), batch(2), 6, seed=0)

"""Geometry: golden relative positions, flips against brute force, the sampler's promises."""

import math
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hapicl.common.randomness import counter_generator
from hapicl.data.geometry import ViewGeometry, sample_geometry
from hapicl.data.positions import cell_centres, relative_positions, sincos_table, stack

views = st.builds(
    ViewGeometry,
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(8, 60),
    st.integers(8, 60),
    st.booleans(),
    st.booleans(),
)


def one(view: ViewGeometry) -> ViewGeometry:
    return stack([view])


def batch_of(numbers: dict[str, np.ndarray], which: str) -> ViewGeometry:
    names = ("top", "left", "height", "width", "hflip")
    return ViewGeometry(*(torch.from_numpy(numbers[f"{name}{which}"]) for name in names))


def embed(position: float, dim: int) -> list[float]:
    quarter = dim // 4
    frequencies = [10000 ** (-k / quarter) for k in range(quarter)]
    return [math.sin(position * w) for w in frequencies] + [math.cos(position * w) for w in frequencies]


def flipped_maps(view: ViewGeometry, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The image's y and x at the sample points of a view, (side, side) each, by array flips."""
    y = view.top + (np.arange(side) + 0.5) / side * view.height
    x = view.left + (np.arange(side) + 0.5) / side * view.width
    rows, columns = np.meshgrid(y, x, indexing="ij")
    if view.hflip:
        rows, columns = rows[:, ::-1], columns[:, ::-1]
    if view.vflip:
        rows, columns = rows[::-1], columns[::-1]
    return rows, columns


def test_relative_positions_agree_with_the_authors_numbers(golden: pathlib.Path) -> None:
    numbers = dict(np.load(golden / "siameseim_relative_positions.npz"))
    got = relative_positions(
        batch_of(numbers, "1"), batch_of(numbers, "2"), int(numbers["grid"]), int(numbers["dim"])
    )
    np.testing.assert_allclose(got.numpy(), numbers["embedding"], rtol=0, atol=1e-7)


@settings(max_examples=60)
@given(first=views, second=views, grid=st.sampled_from([2, 3, 5]))
def test_relative_positions_against_brute_force(first: ViewGeometry, second: ViewGeometry, grid: int) -> None:
    dim = 8
    got = relative_positions(one(first), one(second), grid, dim)[0].numpy()
    rows, columns = flipped_maps(second, grid)
    for row in range(grid):
        for column in range(grid):
            # the second view's cell centre inside the first view as the network sees it, in cells
            y = (rows[row, column] - first.top) / first.height
            x = (columns[row, column] - first.left) / first.width
            y, x = (1 - y if first.vflip else y), (1 - x if first.hflip else x)
            wanted = (
                embed(y * grid - 0.5, dim)
                + embed(x * grid - 0.5, dim)
                + embed(10 * math.log(second.height / first.height), dim)
                + embed(10 * math.log(second.width / first.width), dim)
            )
            np.testing.assert_allclose(got[row * grid + column], wanted, rtol=0, atol=1e-9)


@settings(max_examples=40)
@given(view=views, grid=st.integers(2, 9))
def test_identical_crops_give_the_table_whatever_the_flips(view: ViewGeometry, grid: int) -> None:
    dim = 16
    got = relative_positions(one(view), one(view), grid, dim)[0]
    torch.testing.assert_close(got[:, :dim], sincos_table(grid, dim), rtol=0, atol=1e-10)
    zero = torch.tensor(embed(0.0, dim) * 2, dtype=torch.float64)
    assert torch.equal(got[:, dim:], zero.expand(grid * grid, dim))


@settings(max_examples=40)
@given(view=views, horizontal=st.booleans())
def test_a_flip_between_two_equal_crops_mirrors_the_table(view: ViewGeometry, horizontal: bool) -> None:
    grid, dim = 4, 8
    field = "hflip" if horizontal else "vflip"
    mirrored = view._replace(**{field: not getattr(view, field)})
    got = relative_positions(one(view), one(mirrored), grid, dim)[0, :, :dim].reshape(grid, grid, dim)
    table = sincos_table(grid, dim).reshape(grid, grid, dim)
    torch.testing.assert_close(got, table.flip(1 if horizontal else 0), rtol=0, atol=1e-9)


@settings(max_examples=40)
@given(view=views, grid=st.integers(1, 7))
def test_cell_centres_against_flipped_arrays(view: ViewGeometry, grid: int) -> None:
    rows, columns = flipped_maps(view, grid)
    got = cell_centres(one(view), grid)[0].reshape(grid, grid, 2).numpy()
    np.testing.assert_allclose(got[..., 0], rows, atol=1e-9)
    np.testing.assert_allclose(got[..., 1], columns, atol=1e-9)


def test_table_is_what_its_formula_says() -> None:
    table = sincos_table(3, 8)
    wanted = [embed(row, 8) + embed(column, 8) for row in range(3) for column in range(3)]
    np.testing.assert_allclose(table.numpy(), wanted, atol=1e-12)


def test_table_refuses_a_width_that_is_no_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_table(3, 10)


def test_relative_positions_refuse_unequal_batches() -> None:
    view = ViewGeometry(0, 0, 10, 10, False)
    with pytest.raises(ValueError, match="one of each"):
        relative_positions(stack([view, view]), stack([view]), 2, 8)


@settings(max_examples=200)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    low=st.floats(0.05, 0.9),
    sample=st.integers(0, 2**31),
)
def test_sampled_crops_stay_inside_and_near_the_wanted_share(
    height: int, width: int, low: float, sample: int
) -> None:
    view = sample_geometry(counter_generator(1, 2, sample, 0), (height, width), scale=(low, 1.0))
    assert 0 <= view.top <= height - view.height
    assert 0 <= view.left <= width - view.width
    assert view.height >= 1
    assert view.width >= 1
    if min(height, width) >= 50 and 3 / 4 <= width / height <= 4 / 3:
        assert view.height * view.width >= 0.9 * low * height * width


def test_sampler_flips_as_often_as_asked() -> None:
    drawn = [
        sample_geometry(counter_generator(0, 0, sample, 0), (64, 64), hflip=0.25, vflip=0.75)
        for sample in range(2000)
    ]
    assert np.mean([view.hflip for view in drawn]) == pytest.approx(0.25, abs=0.04)
    assert np.mean([view.vflip for view in drawn]) == pytest.approx(0.75, abs=0.04)


def test_sampler_depends_on_its_four_counters_only() -> None:
    def draw(*counters: int) -> ViewGeometry:
        return sample_geometry(counter_generator(*counters), (480, 640))

    reference = draw(7, 1, 2, 3)
    assert draw(7, 1, 2, 3) == reference
    assert all(
        draw(*other) != reference for other in [(8, 1, 2, 3), (7, 2, 2, 3), (7, 1, 3, 3), (7, 1, 2, 4)]
    )


def test_no_crop_fits_gives_the_largest_centred_one_within_the_aspect() -> None:
    view = sample_geometry(counter_generator(0, 0, 0, 0), (10, 1000), scale=(0.9, 1.0))
    assert (view.height, view.width) == (10, 13)
    assert (view.top, view.left) == (0, (1000 - 13) // 2)


def test_stack_keeps_fields_in_order() -> None:
    stacked = stack([ViewGeometry(1, 2, 3, 4, True), ViewGeometry(5, 6, 7, 8, False, True)])
    assert stacked.top.tolist() == [1, 5]
    assert stacked.width.tolist() == [4, 8]
    assert stacked.hflip.tolist() == [True, False]
    assert stacked.vflip.tolist() == [False, True]

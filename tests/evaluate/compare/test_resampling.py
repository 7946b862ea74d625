"""Test images drawn again: what their choice does to a difference inside one seed."""

from pathlib import Path

import numpy as np
import pytest

from hapicl.common.errors import UserError
from hapicl.evaluate.compare.resampling import (
    can_resample,
    draw_test_images,
    paired_interval,
    read_per_image,
    resampled,
    write_per_image,
)
from hapicl.evaluate.segmentation.miou import miou_of_counts

PIXELS = 100


def counts_of(errors: np.ndarray) -> np.ndarray:
    """Counts (N, 2, 3) of images half of either class, with so many pixels of class 1 missed."""
    half = np.full(len(errors), PIXELS // 2)
    background = np.stack([half, half, half + errors], axis=1)
    foreground = np.stack([half - errors, half, half - errors], axis=1)
    return np.stack([background, foreground], axis=1)


def two_networks(generator: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two networks on images that are easy or hard for both; the second misses more."""
    hard = generator.integers(0, 30, images)
    errors = [hard + generator.integers(0, most, images) for most in (5, 9)]
    return counts_of(errors[0]), counts_of(errors[1])


def interval(first: np.ndarray, second: np.ndarray, seed: int) -> tuple[float, float]:
    """The interval of the difference over the test images."""
    draws = draw_test_images(len(first), seed)
    return paired_interval(*(resampled({"counts": counts}, "miou", draws) for counts in (first, second)))


def test_intervals_hold_the_difference_on_all_images_in_95_of_100_test_sets() -> None:
    generator = np.random.default_rng(0)
    every = two_networks(generator, 200_000)
    true = float(np.subtract(*(miou_of_counts(counts.sum(0)) for counts in every)))
    assert true > 0.01
    trials = [interval(*two_networks(generator, 80), seed) for seed in range(400)]
    covered = np.mean([low <= true <= high for low, high in trials])
    assert covered == pytest.approx(0.95, abs=0.035)  # three standard errors


def test_both_sides_see_the_same_draw_of_images() -> None:
    first, second = two_networks(np.random.default_rng(1), 80)
    low, high = interval(first, second, 0)
    draws = [draw_test_images(80, seed) for seed in (0, 1)]
    apart = [
        resampled({"counts": one}, "miou", draw) for one, draw in zip((first, second), draws, strict=True)
    ]
    loose_low, loose_high = paired_interval(*apart)
    assert high - low < 0.5 * (loose_high - loose_low)  # hard images are hard for both
    assert interval(first, first, 0) == (0.0, 0.0)
    assert interval(first, second, 0) == (low, high)


def test_every_draw_is_a_test_set_of_the_same_size() -> None:
    draws = draw_test_images(7, 3)
    assert draws.shape == (1000, 7)
    assert set(draws.sum(1)) == {7}
    assert not np.array_equal(draws, draw_test_images(7, 4))


def test_what_each_test_image_adds_is_kept(tmp_path: Path) -> None:
    counts = counts_of(np.arange(5))
    write_per_image({"counts": counts}, tmp_path / "cell.npz")
    assert np.array_equal(read_per_image(tmp_path / "cell.npz")["counts"], counts)
    assert read_per_image(tmp_path / "none.npz") == {}
    whole = (tmp_path / "cell.npz").read_bytes()
    for damaged in (whole[:-30], whole[:3], b"something else"):
        (tmp_path / "cell.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"cell\.npz is damaged"):
            read_per_image(tmp_path / "cell.npz")


def test_metrics_that_images_do_not_add_up_to_are_left_out() -> None:
    counts, hits = {"counts": np.zeros(1)}, {"hit": np.zeros(1)}
    assert can_resample(counts, "miou")
    assert can_resample(hits, "ap50")
    assert not can_resample(hits, "voc_ap")  # of another matching
    assert not can_resample({}, "miou")

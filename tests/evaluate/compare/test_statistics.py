"""Paired statistics: by hand, by simulation, and what they refuse to decide."""

import numpy as np
import pytest

from hapicl.evaluate.compare.statistics import Difference, holm, paired_difference


def test_a_difference_is_decided_by_the_interval_of_its_paired_seeds() -> None:
    # differences .02, .03, .04: deviation .01, standard error .01 / sqrt(3), t of 2 degrees of freedom 4.3027
    first, second = {0: 0.52, 1: 0.53, 2: 0.54}, {0: 0.50, 1: 0.50, 2: 0.50}
    found = paired_difference(first, second)
    assert found is not None
    assert found.interval is not None
    half = 4.30265 * 0.01 / 3**0.5
    assert (found.mean, *found.interval) == pytest.approx((0.03, 0.03 - half, 0.03 + half), abs=1e-6)
    assert found.verdict == "higher"
    assert found.p_value == pytest.approx(1 - (27 / 29) ** 0.5)  # closed form of 2 degrees of freedom
    assert paired_difference(second, first).verdict == "lower"  # type: ignore[union-attr]
    assert found.text() == "+3.0 (+0.5 to +5.5, 3 seeds): higher"


def test_seeds_that_move_together_decide_what_their_spread_alone_would_not() -> None:
    first, second = {0: 0.30, 1: 0.50, 2: 0.70}, {0: 0.28, 1: 0.48, 2: 0.679}
    assert paired_difference(first, second).verdict == "higher"  # type: ignore[union-attr]
    shuffled = {0: second[2], 1: second[0], 2: second[1]}
    assert paired_difference(first, shuffled).verdict == "undecided"  # type: ignore[union-attr]


def test_two_seeds_or_one_decide_nothing() -> None:
    two = paired_difference({0: 0.9, 1: 0.91}, {0: 0.1, 1: 0.1})
    assert two is not None
    assert (two.verdict, two.p_value, two.seeds_to_decide()) == ("undecided", None, 3)
    alone = paired_difference({0: 0.9}, {0: 0.1, 1: 0.2})
    assert alone is not None
    assert (alone.interval, alone.verdict, alone.seeds_to_decide()) == (None, "undecided", None)
    assert paired_difference({0: 0.9}, {1: 0.1}) is None  # no seed in common


def test_numbers_that_are_the_same_in_every_seed_are_undecided() -> None:
    same = paired_difference({0: 0.3, 1: 0.4, 2: 0.5}, {0: 0.3, 1: 0.4, 2: 0.5})
    assert same is not None
    assert (same.verdict, same.p_value, same.seeds_to_decide()) == ("undecided", 1.0, None)


def test_seeds_to_decide_are_the_fewest_whose_interval_would_leave_out_zero() -> None:
    # mean 1, deviation 2: t(7 - 1) 2.447 * 2 / sqrt(7) = 1.85 ... t(18 - 1) 2.110 * 2 / sqrt(18) = .995
    found = Difference(0.01, (-0.04, 0.06), 3, 0.02)
    assert found.seeds_to_decide() == 18
    assert Difference(0.0001, (-0.04, 0.06), 3, 0.02).seeds_to_decide() is None  # beyond 100
    assert Difference(0.05, (0.001, 0.099), 4, 0.02).seeds_to_decide() == 4  # decided as it is


def test_holm_by_hand() -> None:
    # sorted .01 x 4, .02 x 3, .03 x 2 (not below the one before), .5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_true_difference_in_95_of_100_comparisons(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    true, trials = 0.02, 3000
    covered = decided_wrongly = 0
    for _ in range(trials):
        shared = generator.normal(0.4, 0.1, seeds)  # what a seed does to both sides
        first = dict(enumerate(shared + true + generator.normal(0, 0.01, seeds)))
        second = dict(enumerate(shared + generator.normal(0, 0.02, seeds)))
        found = paired_difference(first, second)
        assert found is not None
        assert found.interval is not None
        covered += found.interval[0] <= true <= found.interval[1]
        level = paired_difference(dict(enumerate(shared + generator.normal(0, 0.02, seeds))), second)
        decided_wrongly += level is not None and level.verdict != "undecided"
    assert covered / trials == pytest.approx(0.95, abs=0.012)  # three standard errors
    assert decided_wrongly / trials == pytest.approx(0.05, abs=0.012)


def test_holm_is_wrong_about_any_of_a_family_in_one_of_20() -> None:
    generator = np.random.default_rng(0)
    trials, wrong, wrong_alone = 600, 0, 0
    for _ in range(trials):
        values = generator.normal(0, 1, (6, 4))
        found = [paired_difference(dict(enumerate(row)), dict.fromkeys(range(4), 0.0)) for row in values]
        p_values = [each.p_value or 0.0 for each in found if each is not None]
        wrong += min(holm(p_values)) <= 0.05
        wrong_alone += min(p_values) <= 0.05
    assert wrong / trials == pytest.approx(0.05, abs=0.03)
    assert wrong_alone / trials > 0.18

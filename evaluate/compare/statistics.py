"""Paired comparisons over seeds: the mean difference, its interval, and when it is decided.

A seed sets everything that is drawn (label subset, order, crops, heads, random weights) alike for both
sides, so their difference is taken seed by seed. It is decided where the 95 % interval of the mean difference
(Student's t, at least three seeds) leaves out zero; everything else is undecided. Used by `hapicl compare`
and by the claims table of this repository. This file only computes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

SEEDS_NEEDED = 3
CONFIDENCE = 0.95
MOST_SEEDS = 100  # nobody runs more; above that the number is not told

Seeds = Mapping[int, float]  # value by seed
Verdict = Literal["higher", "lower", "undecided"]


@dataclass(frozen=True)
class Difference:
    """A mean difference over the seeds that both sides have.

    Mean, interval and sample deviation of the differences are shares in [-1, 1]; interval and deviation are
    None with one seed.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: int
    deviation: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves out zero, with enough seeds."""
        if self.interval is None or self.seeds < SEEDS_NEEDED:
            return "undecided"
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "undecided"

    @property
    def p_value(self) -> float | None:
        """Two-sided, of the paired t test; None with fewer seeds than a verdict needs."""
        if self.deviation is None or self.seeds < SEEDS_NEEDED:
            return None
        if self.deviation == 0:
            return 1.0 if self.mean == 0 else 0.0
        score = abs(self.mean) / self.deviation * math.sqrt(self.seeds)
        return float(2 * stats.t.sf(score, self.seeds - 1))

    def seeds_to_decide(self) -> int | None:
        """Seeds in all that would decide, if mean and deviation stayed as they are.

        Returns:
            At least the seeds there are; None where that cannot be told (one seed) or would be more than 100.
        """
        if self.deviation is None:
            return None
        for seeds in range(max(self.seeds, SEEDS_NEEDED), MOST_SEEDS + 1):
            if _half_width(self.deviation, seeds) < abs(self.mean):
                return seeds
        return None

    def text(self) -> str:
        """Per cent points, such as `+1.2 (+0.4 to +2.0, 3 seeds): higher`."""
        if self.interval is None:
            return f"{100 * self.mean:+.1f} (one seed): undecided"
        low, high = (100 * side for side in self.interval)
        return f"{100 * self.mean:+.1f} ({low:+.1f} to {high:+.1f}, {self.seeds} seeds): {self.verdict}"


def paired_difference(first: Seeds, second: Seeds) -> Difference | None:
    """First minus second by the seeds that both have; None where they share none."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Difference(mean, None, count)
    deviation = statistics.stdev(differences)
    half = _half_width(deviation, count)
    return Difference(mean, (mean - half, mean + half), count, deviation)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (Scandinavian Journal of Statistics, 1979), in the order given.

    Rejecting those at or under .05 is wrong about any of them in at most one family of comparisons in twenty.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _half_width(deviation: float, seeds: int) -> float:
    """Half of the interval of a mean over so many seeds (2 or more)."""
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))
    return quantile * deviation / math.sqrt(seeds)

"""Verdicts of the claims table: two rows compared seed by seed, and the papers' claims as such comparisons.

A comparison is paired: a seed sets the order of the images, the crops and the evaluation of both rows, so
their difference is taken seed by seed. It is decided where the 95 % interval of the mean difference
(Student's t, at least three seeds) leaves out zero; everything else is undecided. This file only
computes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

SEEDS_NEEDED = 3
Seeds = Mapping[int, float]  # value by seed
Values = Mapping[tuple[str, str], Seeds]  # by row and column


@dataclass(frozen=True)
class Claim:
    """A statement as comparisons: (row, row it is said to beat)."""

    text: str
    pairs: tuple[tuple[str, str], ...]


CLAIMS = (
    Claim(
        "HAPiCL: dense transfer beats instance-level learning; it lifts SimCLR and MoCo",
        (
            ("hapicl_s", "simclr"),
            ("hapicl_m", "moco_v2"),
            ("hapicl_m", "hapicl_m_redraws_only"),
            ("hapicl_m", "byol"),
            ("harl", "byol"),
        ),
    ),
    Claim("DenseCL: dense transfer above MoCo v2", (("densecl", "moco_v2"),)),
    Claim(
        "PIRL: an invariant pretext beats a covariant one",
        (("pirl", "jigsaw"), ("pirl", "rotation"), ("pirl", "npid")),
    ),
    Claim(
        "SiameseIM: linear near MoCo v3 and above MAE, dense at MAE's level or above",
        (("siameseim", "mae"), ("siameseim", "moco_v3")),
    ),
)
# not of a paper: questions of this project, asked in the same way
QUESTIONS = (
    Claim(
        "Masks: does their quality carry over to dense transfer?",
        (
            ("hapicl_s", "hapicl_s[rectangles]"),
            ("hapicl_s", "hapicl_s[felzenszwalb]"),
            ("hapicl_s", "hapicl_s[fast]"),
            ("hapicl_s[refined]", "hapicl_s"),
            ("hapicl_m[refined]", "hapicl_m"),
        ),
    ),
    Claim(
        "Starts: half the steps by SimCLR, half by HAPiCL-S from there, against HAPiCL-S all the way",
        (("hapicl_s_after_simclr", "hapicl_s"),),
    ),
    Claim(
        "Small recipes: as they are now against what they were",
        (
            ("simclr", "simclr_before"),
            ("hapicl_s", "hapicl_s_before"),
            ("moco_v2", "moco_v2_before"),
            ("moco_v2", "moco_v2_temperature_0.2"),
            ("hapicl_m", "hapicl_m_before"),
            ("hapicl_m", "hapicl_m_temperature_0.2"),
            ("densecl", "densecl_before"),
            ("pirl", "pirl_before"),
        ),
    ),
)


@dataclass(frozen=True)
class Difference:
    """A comparison: mean difference over the seeds that both rows have, and its 95 % interval.

    All are shares in [0, 1]; the interval is None with fewer than two seeds.
    """

    mean: float
    interval: tuple[float, float] | None
    seeds: int

    @property
    def verdict(self) -> str:
        """`higher`, `lower` or `undecided`."""
        if self.interval is None or self.seeds < SEEDS_NEEDED:
            return "undecided"
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "undecided"

    def text(self) -> str:
        """Per cent points, such as `+1.2 (95 % interval +0.4 to +2.0, 3 seeds): higher`."""
        if self.interval is None:
            return f"{100 * self.mean:+.1f} (one seed): undecided"
        low, high = (100 * side for side in self.interval)
        return f"{100 * self.mean:+.1f} ({low:+.1f} to {high:+.1f}, {self.seeds} seeds): {self.verdict}"


def compare(first: Seeds, second: Seeds) -> Difference | None:
    """Compare two rows in one column by the seeds that both have; None where they share none."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Difference(mean, None, count)
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return Difference(mean, (mean - half, mean + half), count)


@dataclass(frozen=True)
class Line:
    """One comparison of a claim in one column."""

    row: str
    rival: str
    column: str
    difference: Difference


def lines_of(values: Values, columns: Sequence[str], claim: Claim) -> list[Line]:
    """Every comparison of a claim for which both rows were measured."""
    found = []
    for row, rival in claim.pairs:
        for column in columns:
            difference = compare(values.get((row, column), {}), values.get((rival, column), {}))
            if difference is not None:
                found.append(Line(row, rival, column, difference))
    return found


def counted(lines: Sequence[Line]) -> dict[str, int]:
    """How many comparisons have each verdict."""
    verdicts = [line.difference.verdict for line in lines]
    return {word: verdicts.count(word) for word in ("higher", "lower", "undecided")}

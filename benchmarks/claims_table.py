"""The papers' claims, and questions of this project, as comparisons of two rows of the claims table.

A comparison is paired: a seed sets the order of the images, the crops and the evaluation of both rows (see
`hapicl.evaluate.compare.statistics`). This file only computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from claims_rows import MACHINE_ROWS, USES_MASKS

from hapicl.evaluate.compare.statistics import Difference, Seeds, paired_difference

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
# HAPiCL-S by its masks, those first whose boxes fit the objects' better (docs/masks.md)
BY_MASKS = (
    "hapicl_s[fast]",
    "hapicl_s",
    "hapicl_s[refined]",
    "hapicl_s[rectangles]",
    "hapicl_s[felzenszwalb]",
)
# not of a paper: questions of this project, asked in the same way
QUESTIONS = (
    Claim(
        "Masks: does their quality carry over to dense transfer?",
        (
            *combinations(BY_MASKS, 2),
            *((f"{method}[refined]", method) for method in USES_MASKS if method != "hapicl_s"),
            ("hapicl_s[rectangles]", "simclr"),
            ("hapicl_m_redraws_only", "moco_v2"),
        ),
    ),
    Claim(
        "The loop: is HAPiCL-S better on masks whose network started from its own backbone?",
        (("hapicl_s[loop]", "hapicl_s[first]"),),
    ),
    Claim(
        "Starts: half the steps by SimCLR, half by HAPiCL-S from there, against HAPiCL-S all the way",
        (
            ("hapicl_s_after_simclr", "hapicl_s"),
            ("hapicl_s_after_simclr@1/4", "hapicl_s@1/4"),
            ("hapicl_s_continued_after_simclr@1/4", "hapicl_s@1/4"),
        ),
    ),
    Claim(
        "Small recipes: as they are now against what they were",
        (
            ("simclr", "simclr_before"),
            ("hapicl_s", "hapicl_s_before"),
            ("moco_v2", "moco_v2_before"),
            ("moco_v2_on_cpu", "moco_v2_before"),
            ("moco_v2", "moco_v2_temperature_0.2"),
            ("hapicl_m", "hapicl_m_before"),
            ("hapicl_m_on_cpu", "hapicl_m_before"),
            ("hapicl_m", "hapicl_m_temperature_0.2"),
            ("densecl", "densecl_before"),
            ("densecl_on_cpu", "densecl_before"),
            ("pirl", "pirl_before"),
            ("pirl_on_cpu", "pirl_before"),
        ),
    ),
    Claim(
        "Machines: the same seed trained elsewhere, against it trained on a CPU",
        tuple((row.method, row.name) for row in MACHINE_ROWS),
    ),
)


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
            difference = paired_difference(values.get((row, column), {}), values.get((rival, column), {}))
            if difference is not None:
                found.append(Line(row, rival, column, difference))
    return found


def counted(lines: Sequence[Line]) -> dict[str, int]:
    """How many comparisons have each verdict."""
    verdicts = [line.difference.verdict for line in lines]
    return {word: verdicts.count(word) for word in ("higher", "lower", "undecided")}

"""What a comparison found: every initialisation against the reference at every label fraction, in words.

No side is called better without an interval over seeds. Differences are in points: hundredths of the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .settings import CompareSettings, per_cent
from .statistics import MOST_SEEDS, SEEDS_NEEDED, Difference, Seeds, holm, paired_difference

METRICS = {"miou": "mIoU", "voc_ap": "VOC AP", "voc_ap50": "VOC AP50", "voc_ap75": "VOC AP75"}
AGAINST_RANDOM = {"higher": "helps", "lower": "hurts", "undecided": "undecided"}
AGAINST_OTHERS = {"higher": "better", "lower": "worse", "undecided": "undecided"}
ALPHA = 0.05

Interval = tuple[float, float]
Values = Mapping[tuple[str, float], Seeds]  # by initialisation and fraction
# interval over the test images of one seed: initialisation, fraction, seed -> None where it is not kept
TestImages = Callable[[str, float, int], Interval | None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One initialisation against the reference at one label fraction.

    `difference` is None where no seed has both; `adjusted` is Holm's p value among all findings that have
    one; `by_seed` are the differences of the seeds, `test_images` their intervals over the test images.
    """

    initialisation: str
    against: str
    fraction: float
    difference: Difference | None
    by_seed: dict[int, float] = field(default_factory=dict)
    test_images: dict[int, Interval] = field(default_factory=dict)
    adjusted: float | None = None

    @property
    def verdict(self) -> str:
        """`higher`, `lower` or `undecided`."""
        return "undecided" if self.difference is None else self.difference.verdict

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out zero, with enough seeds."""
        return self.verdict != "undecided"

    @property
    def hangs_on_test_images(self) -> bool:
        """Whether a verdict could be another one with other test images, in some seed."""
        return self.decided and any(low <= 0 <= high for low, high in self.test_images.values())

    @property
    def stands_corrected(self) -> bool:
        """Whether the verdict also stands after Holm's correction."""
        return self.decided and self.adjusted is not None and self.adjusted <= ALPHA


def findings(settings: CompareSettings, values: Values, test_images: TestImages) -> list[Finding]:
    """Every comparison of the design, by initialisation and then fraction."""
    found = []
    for name in settings.others:
        for fraction in settings.fractions:
            first = values.get((name, fraction), {})
            second = values.get((settings.reference, fraction), {})
            shared = sorted(first.keys() & second.keys())
            intervals = {seed: test_images(name, fraction, seed) for seed in shared}
            found.append(
                Finding(
                    initialisation=name,
                    against=settings.reference,
                    fraction=fraction,
                    difference=paired_difference(first, second),
                    by_seed={seed: first[seed] - second[seed] for seed in shared},
                    test_images={seed: pair for seed, pair in intervals.items() if pair is not None},
                )
            )
    return _corrected(found)


def _corrected(found: Sequence[Finding]) -> list[Finding]:
    """With Holm's p values among all that have one."""
    raw = {
        place: p_value
        for place, finding in enumerate(found)
        if finding.difference is not None and (p_value := finding.difference.p_value) is not None
    }
    adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
    return [replace(finding, adjusted=adjusted.get(place)) for place, finding in enumerate(found)]


def metric_name(headline: str) -> str:
    """A metric as it is written: mIoU, AP50."""
    return METRICS.get(headline, headline.upper())


def verdict_word(finding: Finding) -> str:
    """`helps`, `hurts`, or against trained weights `better`, `worse`; or `undecided`."""
    words = AGAINST_RANDOM if finding.against == "random" else AGAINST_OTHERS
    return words[finding.verdict]


def points(difference: Difference) -> str:
    """The mean in points, such as `+3.1`; two decimals where one would hide it."""
    return _signed(difference.mean, _decimals(difference))


def interval_text(difference: Difference) -> str:
    """The interval in points, such as `+1.2 to +5.0`; `-` with one seed."""
    if difference.interval is None:
        return "-"
    low, high = (_signed(side, _decimals(difference)) for side in difference.interval)
    return f"{low} to {high}"


def _decimals(difference: Difference) -> int:
    """Decimals that an interval needs to be seen."""
    if difference.interval is None:
        return 1
    low, high = difference.interval
    return 1 if high - low >= 0.01 else 2


def _signed(share: float, decimals: int) -> str:
    """A share as signed points; nothing is -0.0."""
    rounded = round(100 * share, decimals)
    return f"{rounded + 0.0:+.{decimals}f}" if rounded else f"{0:.{decimals}f}"


def sentence(found: Sequence[Finding], headline: str) -> str:
    """What one initialisation does against the reference, over all fractions."""
    first = found[0]
    parts = [_part(finding, metric_name(headline)) for finding in found]
    return f"{first.initialisation} against {first.against}: {'; '.join(parts)}."


def _part(finding: Finding, metric: str) -> str:
    """One fraction of a sentence."""
    place = f"at {per_cent(finding.fraction)} of the labels"
    difference = finding.difference
    if difference is None:
        return f"not measured {place}"
    mean, interval = points(difference), interval_text(difference)
    if finding.decided:
        corrected = "" if finding.stands_corrected else ", not after Holm's correction"
        turned = "; other test images could turn it" if finding.hangs_on_test_images else ""
        said = f"{mean} {metric}, 95 % interval {interval}{corrected}{turned}"
        return f"{verdict_word(finding)} {place} ({said})"
    if difference.seeds == 1:
        return f"undecided {place}: one seed says nothing of spread ({mean} {metric})"
    return f"undecided {place} ({mean} {metric}, 95 % interval {interval}; {more_seeds(difference)})"


def more_seeds(difference: Difference) -> str:
    """What would decide it, in words, from the mean and the deviation of the differences."""
    if difference.deviation is None:
        return f"{SEEDS_NEEDED} seeds or more are needed"
    if difference.deviation == 0 and difference.mean == 0:
        return "both gave the same numbers in every seed"
    needed = difference.seeds_to_decide()
    if needed is None:
        return f"more than {MOST_SEEDS} seeds would be needed"
    if difference.seeds < SEEDS_NEEDED:
        return f"{difference.seeds} seeds of at least {SEEDS_NEEDED}; about {needed} would decide"
    return f"about {needed} seeds would decide, {needed - difference.seeds} more"


def correction_words(found: Sequence[Finding]) -> str:
    """How many comparisons there were, and which verdicts stand after a correction for that."""
    tested = [finding for finding in found if finding.adjusted is not None]
    if len(tested) < 2:
        return "Intervals are of 95 % for each comparison by itself."
    decided = [finding for finding in tested if finding.decided]
    standing = [finding for finding in decided if finding.stands_corrected]
    text = (
        f"Intervals are of 95 % for each comparison by itself: of {len(tested)} comparisons without any true "
        "difference, one in twenty would be decided by chance."
    )
    if not decided:
        return f"{text} None is decided here."
    names = ", ".join(f"{each.initialisation} at {per_cent(each.fraction)}" for each in standing) or "none"
    return (
        f"{text} Of the {len(decided)} decided ones these stand after Holm's correction for all "
        f"{len(tested)}: {names}."
    )

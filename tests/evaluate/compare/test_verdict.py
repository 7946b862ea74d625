"""The words: helps, hurts, undecided and why; never a winner without an interval."""

from dataclasses import replace

import pytest

from hapicl.evaluate.compare.settings import CompareSettings
from hapicl.evaluate.compare.verdict import Finding, correction_words, findings, sentence, verdict_word

SEEDS = {0: 0.30, 1: 0.31, 2: 0.32}


def higher_by(*steps: float) -> dict[int, float]:
    """The reference's values with something added, seed by seed."""
    return {seed: SEEDS[seed] + step for seed, step in enumerate(steps)}


def found(values: dict[tuple[str, float], dict[int, float]], **changes: object) -> list[Finding]:
    """Findings of one or two initialisations against the first."""
    names = list(dict.fromkeys(name for name, _ in values))
    fractions = sorted({fraction for _, fraction in values})
    settings = CompareSettings.model_validate(
        {
            "initialisations": {name: name for name in names},
            "fractions": fractions,
            "protocol": "seg-probe",
            **changes,
        }
    )
    return findings(settings, values, lambda name, fraction, seed: (-0.01, 0.02) if seed == 0 else None)


def test_a_decided_and_an_undecided_fraction_in_one_sentence() -> None:
    values = {
        ("random", 0.05): SEEDS,
        ("ours", 0.05): higher_by(0.030, 0.031, 0.032),
        ("random", 1.0): SEEDS,
        ("ours", 1.0): higher_by(0.01, -0.01, 0.009),
    }
    text = sentence(found(values), "miou")
    # an interval of under one point gets a second decimal; deviation .001, so .001 / sqrt(3) * 4.303 = .00248
    said = "ours against random: helps at 5 % of the labels (+3.10 mIoU, 95 % interval +2.85 to +3.35"
    assert text.startswith(said)
    assert "undecided at 100 % of the labels (+0.3 mIoU, 95 % interval -2.5 to +3.1; about" in text
    assert "seeds would decide" in text


def test_below_the_reference_hurts_and_against_trained_weights_it_is_worse() -> None:
    values = {("random", 1.0): SEEDS, ("ours", 1.0): higher_by(-0.03, -0.031, -0.032)}
    (finding,) = found(values)
    assert verdict_word(finding) == "hurts"
    values = {("simclr", 1.0): SEEDS, ("ours", 1.0): higher_by(-0.03, -0.031, -0.032)}
    (finding,) = found(values, against="simclr")
    assert verdict_word(finding) == "worse"
    assert "ours against simclr: worse at 100 % of the labels" in sentence([finding], "ap50")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((0.2,), "undecided at 100 % of the labels: one seed says nothing of spread (+20.0 AP50)"),
        ((0.2, 0.21), "2 seeds of at least 3; about 3 would decide"),
        ((0.0, 0.0, 0.0), "both gave the same numbers in every seed"),
        ((0.1, -0.1, 0.0001), "more than 100 seeds would be needed"),
    ],
)
def test_why_it_is_undecided(steps: tuple[float, ...], said: str) -> None:
    values = {("random", 1.0): SEEDS, ("ours", 1.0): higher_by(*steps)}
    (finding,) = found(values)
    assert verdict_word(finding) == "undecided"
    text = sentence([finding], "ap50")
    assert said in text
    assert not {"helps", "hurts"} & set(text.split())


def test_what_was_not_measured_is_said() -> None:
    values = {("random", 1.0): SEEDS, ("ours", 1.0): {7: 0.9}}
    assert sentence(found(values), "miou") == "ours against random: not measured at 100 % of the labels."


def test_a_verdict_of_many_comparisons_says_whether_it_stands_corrected() -> None:
    clear, weak = higher_by(0.030, 0.0301, 0.0302), higher_by(0.02, 0.03, 0.04)
    values = {("random", 0.1): SEEDS, ("clear", 0.1): clear, ("weak", 0.1): weak}
    many = found(values)
    assert [finding.decided for finding in many] == [True, True]
    assert [finding.stands_corrected for finding in many] == [True, True]  # .035 is the larger of two
    values |= {(f"other{number}", 0.1): higher_by(0.01, -0.01, 0.0) for number in range(3)}
    values |= {("weaker", 0.1): higher_by(0.02, 0.031, 0.041)}
    many = found(values)
    assert {finding.initialisation for finding in many if finding.stands_corrected} == {"clear"}
    assert "not after Holm's correction" in sentence([many[1]], "miou")
    assert "these stand after Holm's correction for all 6: clear at 10 %" in correction_words(many)
    assert "by itself" in correction_words(many[:1])


def test_a_verdict_that_other_test_images_could_turn_says_so() -> None:
    values = {("random", 1.0): SEEDS, ("ours", 1.0): higher_by(0.030, 0.031, 0.032)}
    (finding,) = found(values)
    assert finding.hangs_on_test_images
    assert "+3.35; other test images could turn it)" in sentence([finding], "miou")
    clear = replace(finding, test_images={0: (0.01, 0.02), 1: (0.001, 0.05)})
    assert "could turn it" not in sentence([clear], "miou")
    (undecided,) = found({**values, ("ours", 1.0): higher_by(0.1, -0.1, 0.0)})
    assert not undecided.hangs_on_test_images  # there is no verdict to turn


def test_differences_of_seeds_stand_beside_and_decide_nothing() -> None:
    values = {("random", 1.0): SEEDS, ("ours", 1.0): higher_by(0.1, -0.1, 0.02)}
    (finding,) = found(values)
    assert finding.by_seed == pytest.approx({0: 0.1, 1: -0.1, 2: 0.02})
    assert finding.test_images == {0: (-0.01, 0.02)}
    assert finding.verdict == "undecided"

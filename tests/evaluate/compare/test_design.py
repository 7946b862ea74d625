"""The design: balanced wherever it stops, nested label subsets, as many classes as can be had."""

import itertools
from collections import Counter

import numpy as np
import pytest

from hapicl.evaluate.compare.design import cells, classes_absent, label_order, label_subset
from hapicl.evaluate.compare.settings import CompareSettings

NAMES = {"random": "random", "ours": "runs/ours", "theirs": "theirs.pth"}


def settings(**changes: object) -> CompareSettings:
    """Three initialisations at three fractions."""
    given = {"initialisations": NAMES, "fractions": (0.1, 0.5, 1.0), "seeds": 3, "protocol": "seg-probe"}
    return CompareSettings.model_validate({**given, **changes})


def presence() -> np.ndarray:
    """(60, 4): class 0 everywhere, 1 and 2 in half of the images, 3 in three of them."""
    found = np.zeros((60, 4), bool)
    found[:, 0] = True
    found[::2, 1] = found[1::2, 2] = True
    found[[7, 23, 41], 3] = True
    return found


def test_wherever_it_stops_all_but_one_fraction_and_seed_can_be_compared() -> None:
    order = list(cells(settings()))
    assert len(order) == len(set(order)) == 27
    for stop in range(len(order) + 1):
        done = order[:stop]
        counts = Counter((cell.seed, cell.fraction) for cell in done)
        assert sum(count < len(NAMES) for count in counts.values()) <= 1
        seeds = Counter(fraction for (_, fraction), count in counts.items() if count == len(NAMES))
        assert max(seeds.values(), default=0) - min(seeds[f] for f in (0.1, 0.5, 1.0)) <= 1


def test_subsets_are_nested_and_the_seeds() -> None:
    there = presence()
    for seed in range(5):
        subsets = [set(label_subset(there, fraction, seed)) for fraction in (0.05, 0.1, 0.5, 1.0)]
        assert [len(subset) for subset in subsets] == [3, 6, 30, 60]
        assert all(one < other for one, other in itertools.pairwise(subsets))
    assert label_subset(there, 0.1, 0) != label_subset(there, 0.1, 1)
    assert label_subset(there, 0.1, 0) == label_subset(there, 0.1, 0)


def test_a_rare_class_is_among_few_labels() -> None:
    there = presence()
    for seed in range(20):
        assert classes_absent(there, label_subset(there, 0.1, seed)) == []
    plain = sum(not there[np.random.default_rng(seed).permutation(60)[:6], 3].any() for seed in range(20))
    assert plain > 5  # a plain draw misses it often


def test_classes_that_nothing_can_hold_are_named() -> None:
    there = np.eye(6, dtype=bool)  # an image for each class
    subset = label_subset(there, 0.5, 0)
    assert len(subset) == 3
    assert sorted([*subset, *classes_absent(there, subset)]) == list(range(6))
    there[:, 5] = False  # nowhere labelled: nothing is missed
    assert 5 not in classes_absent(there, label_subset(there, 0.5, 0))


def test_the_draw_is_the_plain_one_where_that_holds_every_class() -> None:
    everywhere = np.ones((40, 3), bool)
    rare = everywhere.copy()
    order = label_order(everywhere, 7)
    rare[:, 2] = False
    rare[order[5], 2] = True
    assert set(label_order(rare, 7)[:10]) == set(order[:10])
    assert set(label_order(rare, 7)[:2]) == {order[0], order[5]}


def test_every_image_gets_labels_equally_often_where_all_have_all_classes() -> None:
    everywhere = np.ones((20, 2), bool)
    drawn = Counter(image for seed in range(400) for image in label_subset(everywhere, 0.25, seed))
    assert min(drawn.values()) > 60  # of 100 expected, deviation 8.7
    assert max(drawn.values()) < 140


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initialisations": {"random": "random"}}, "compare 2 to 50 initialisations"),
        ({"initialisations": {"a": "a.pth", "b": "b.pth"}}, "compared with what"),
        ({"against": "our"}, "did you mean ours"),
        ({"fractions": (0.1, 0.1)}, "names one twice"),
        ({"fractions": (0.0, 0.1)}, "fractions"),
    ],
)
def test_designs_that_compare_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)

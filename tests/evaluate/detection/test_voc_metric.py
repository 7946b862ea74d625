import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapicl.evaluate.detection.voc_metric import (
    IOU_THRESHOLDS,
    Detections,
    Truth,
    eleven_point,
    voc_ap,
    voc_classification_ap,
    voc_mean_ap,
)


def truth(*boxes: tuple[float, ...], difficult: tuple[bool, ...] = ()) -> Truth:
    hard = difficult or (False,) * len(boxes)
    return Truth(np.asarray(boxes, float).reshape(-1, 4), np.asarray(hard, bool))


def found(*rows: tuple[str, float, tuple[float, ...]]) -> Detections:
    return Detections(
        [image for image, _, _ in rows],
        np.asarray([score for _, score, _ in rows]),
        np.asarray([box for _, _, box in rows], float).reshape(-1, 4),
    )


def test_one_object_found_gives_one() -> None:
    assert voc_ap({"a": truth((0, 0, 10, 10))}, found(("a", 0.9, (0, 0, 10, 10)))) == 1.0


def test_one_of_two_objects_found_covers_six_of_eleven_points() -> None:
    # recall .5 is reached with precision 1: points 0, .1, ..., .5
    truths = {"a": truth((0, 0, 10, 10), (20, 20, 30, 30))}
    assert voc_ap(truths, found(("a", 0.9, (0, 0, 10, 10)))) == pytest.approx(6 / 11)


def test_a_false_alarm_in_front_lowers_the_precision() -> None:
    # ranking: miss, hit, hit: precision 0, 1/2, 2/3 at recall 0, 1/2, 1; best at or above is 2/3 everywhere
    truths = {"a": truth((0, 0, 10, 10), (20, 20, 30, 30))}
    ranked = found(("a", 0.9, (50, 50, 60, 60)), ("a", 0.8, (0, 0, 10, 10)), ("a", 0.7, (20, 20, 30, 30)))
    assert voc_ap(truths, ranked) == pytest.approx(2 / 3)


def test_hit_miss_hit() -> None:
    # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: six points at 1, five at 2/3
    truths = {"a": truth((0, 0, 10, 10), (20, 20, 30, 30))}
    ranked = found(("a", 0.9, (0, 0, 10, 10)), ("a", 0.8, (50, 50, 60, 60)), ("a", 0.7, (20, 20, 30, 30)))
    assert voc_ap(truths, ranked) == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_second_detection_of_one_object_is_a_false_alarm() -> None:
    truths = {"a": truth((0, 0, 10, 10)), "b": truth((0, 0, 10, 10))}
    ranked = found(("a", 0.9, (0, 0, 10, 10)), ("a", 0.8, (0, 0, 10, 9)), ("b", 0.7, (0, 0, 10, 10)))
    assert voc_ap(truths, ranked) == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_the_assignment_looks_at_the_nearest_object_only() -> None:
    # the second detection overlaps the free object by 10/190, the taken one by .9: a false alarm
    truths = {"a": truth((0, 0, 10, 10), (9, 0, 19, 10))}
    ranked = found(("a", 0.9, (0, 0, 10, 10)), ("a", 0.8, (0, 0, 9, 10)))
    assert voc_ap(truths, ranked) == pytest.approx(6 / 11)


def test_difficult_objects_are_neither_hits_nor_misses() -> None:
    truths = {"a": truth((0, 0, 10, 10), (20, 20, 30, 30), difficult=(True, False))}
    both = found(("a", 0.9, (0, 0, 10, 10)), ("a", 0.8, (20, 20, 30, 30)))
    assert voc_ap(truths, both) == 1.0
    twice = found(("a", 0.9, (0, 0, 10, 10)), ("a", 0.85, (0, 0, 10, 10)), ("a", 0.8, (20, 20, 30, 30)))
    assert voc_ap(truths, twice) == 1.0


def test_a_class_without_objects_has_no_ap() -> None:
    only_difficult = {"a": truth((0, 0, 10, 10), difficult=(True,))}
    assert voc_ap(only_difficult, found(("a", 0.9, (0, 0, 10, 10)))) is None


def test_overlap_of_exactly_one_half_is_a_hit() -> None:
    # 10 x 5 inside 10 x 10
    truths = {"a": truth((0, 0, 10, 10))}
    half = found(("a", 0.9, (0, 0, 10, 5)))
    assert voc_ap(truths, half, iou=0.5) == 1.0
    assert voc_ap(truths, half, iou=0.55) == 0.0


def test_mean_over_thresholds_and_classes() -> None:
    # IoU .8 passes .50 to .80 (7 of 10); the second class is missed; the third has no object and is left out
    truths = {"x": {"a": truth((0, 0, 10, 10))}, "y": {"a": truth((0, 0, 10, 10))}, "z": {}}
    summary, per_class = voc_mean_ap(truths, {"x": found(("a", 0.9, (0, 0, 10, 8)))})
    assert summary == pytest.approx({"ap": 0.35, "ap50": 0.5, "ap75": 0.5})
    assert per_class["x"] == pytest.approx(0.7)
    assert per_class["y"] == 0.0
    assert per_class["z"] is None


def test_thresholds() -> None:
    assert IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_classification_ranking() -> None:
    # positives at ranks 1 and 3: precision 1 and 2/3
    scores, positive = np.asarray([0.9, 0.8, 0.7, 0.1]), np.asarray([True, False, True, False])
    assert voc_classification_ap(scores, positive) == pytest.approx((6 + 5 * 2 / 3) / 11)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 5))
def test_eleven_points_against_a_plain_loop(hits: list[bool], missed: int) -> None:
    wanted = max(1, sum(hits) + missed)
    found_so_far = np.cumsum(hits)
    recall, precision = found_so_far / wanted, found_so_far / np.arange(1, len(hits) + 1)
    total = 0.0
    for point in range(11):
        # integers: found * 10 >= point * wanted
        best = [p for p, count in zip(precision, found_so_far, strict=True) if count * 10 >= point * wanted]
        total += max(best, default=0.0) / 11
    assert eleven_point(recall, precision) == pytest.approx(total)

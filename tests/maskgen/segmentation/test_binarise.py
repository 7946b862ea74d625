import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hapicl.maskgen.segmentation.binarise import border_pixels, clean_mask, confidence, otsu_split


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=2, max_size=12))
def test_otsu_split_is_the_best_of_all_thresholds(regions: list[tuple[int, int]]) -> None:
    values = np.array([value for value, _ in regions], np.float32)
    area = np.array([size for _, size in regions])
    pixels = np.repeat(values, area).astype(float)
    threshold, fraction = otsu_split(values, area)
    best = 0.0
    for candidate in np.unique(pixels)[:-1]:
        high, low = pixels[pixels > candidate], pixels[pixels <= candidate]
        between = len(high) * len(low) / len(pixels) ** 2 * (high.mean() - low.mean()) ** 2
        best = max(best, between / pixels.var())
    assert fraction == pytest.approx(best, abs=1e-6)
    if best > 0:
        assert pixels.min() <= threshold < pixels.max()


def test_otsu_split_of_constants_says_so() -> None:
    assert otsu_split(np.full(4, 0.3, np.float32), np.arange(1, 5)) == (pytest.approx(0.3), 0.0)


def test_the_threshold_keeps_off_the_border_if_told() -> None:
    # a bright object, ground of middle brightness along the sides, a dark rest
    values, area = np.array([0.0, 0.5, 1.0], np.float32), np.array([500, 300, 200])
    labels = np.zeros((10, 100), np.int32)
    labels[:, :25] = labels[:, -5:] = 1
    labels[2:9, 40:70] = 2
    border = border_pixels(labels, 3)
    np.testing.assert_array_equal(border, [70, 50, 0])  # the bottom row does not count
    assert otsu_split(values, area)[0] == pytest.approx(0.25)
    threshold, fraction = otsu_split(values, area, border, 5.0)
    assert threshold == pytest.approx(0.75)
    assert 0 < fraction < otsu_split(values, area)[1]


def test_cleaning_fills_holes_and_drops_crumbs() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:20, 5:20] = True
    mask[10:12, 10:12] = False  # a hole
    mask[25, 25] = True  # a crumb
    mask[0:10, 26:30] = True  # a second part, 40 of 225 pixels
    expected = mask.copy()
    expected[10:12, 10:12] = True
    expected[25, 25] = False
    np.testing.assert_array_equal(clean_mask(mask, 0.1), expected)
    expected[0:10, 26:30] = False
    np.testing.assert_array_equal(clean_mask(mask, 0.3), expected)


def test_a_hole_is_filled_up_to_its_share_of_the_mask() -> None:
    mask = np.zeros((30, 30), bool)
    mask[5:25, 5:25] = True
    mask[8:10, 8:10] = False  # 4 pixels of 347: a highlight
    mask[12:19, 12:19] = False  # 49: what is seen through a handle
    seen_through = mask.copy()
    seen_through[8:10, 8:10] = True
    np.testing.assert_array_equal(clean_mask(mask, 0.1, 0.02), seen_through)
    np.testing.assert_array_equal(clean_mask(mask, 0.1, 0.0), mask)
    assert clean_mask(mask, 0.1)[5:25, 5:25].all()  # without a limit


def test_cleaning_leaves_bays_of_the_border_open() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:, 5:9] = mask[5:, 12:16] = mask[5:8, 5:16] = True
    np.testing.assert_array_equal(clean_mask(mask, 0.1), mask)


def test_confidence_needs_separation_agreement_and_contrast() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    lab = np.zeros((20, 20, 3), np.float32)
    lab[mask] = 60
    assert confidence(lab, mask, 1.0, 1.0) > 0.99
    assert confidence(lab, mask, 0.5, 1.0) == 0
    assert confidence(lab, mask, 1.0, 0.5) == pytest.approx(0.5, abs=0.01)
    assert confidence(np.zeros_like(lab), mask, 1.0, 1.0) == 0
    assert confidence(lab, ~np.zeros_like(mask), 1.0, 1.0) == 0
    assert confidence(lab, np.zeros_like(mask), 1.0, 1.0) == 0


def test_a_border_that_no_split_leaves_out_does_not_decide():
    values = np.array([0.1, 0.2, 0.9], np.float32)
    area, border = np.array([10, 10, 10]), np.array([0, 0, 8])
    assert otsu_split(values, area, border, 5.0) == otsu_split(values, area)
    assert otsu_split(values, area)[0] == pytest.approx(0.55)

"""Measures against cases worked out by hand."""

import numpy as np
import pytest

from hapicl.maskgen.inspection.measures import (
    adaptive_f_beta,
    f_beta_curve,
    mean_absolute_error,
    s_measure,
)

TRUTH = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)
SALIENCY = np.array([[1.0, 0.6, 0.6, 0.0], [0.4, 0.2, 0.2, 0.0]])


def test_mean_absolute_error():
    # |0| + .4 + .6 + 0 + .6 + .8 + .2 + 0 = 2.6 over 8 pixels
    assert mean_absolute_error(SALIENCY, TRUTH) == pytest.approx(2.6 / 8)
    assert mean_absolute_error(TRUTH, TRUTH) == 0


def f_beta(precision, recall):
    return 1.3 * precision * recall / (0.3 * precision + recall)


def test_f_beta_at_each_threshold():
    curve = f_beta_curve(SALIENCY, TRUTH)
    assert curve.shape == (255,)
    # index t - 1; 0.2 is level 51, 0.4 level 102, 0.6 level 153
    assert curve[51 - 1] == pytest.approx(f_beta(4 / 6, 4 / 4))
    assert curve[102 - 1] == pytest.approx(f_beta(3 / 4, 3 / 4))
    assert curve[153 - 1] == pytest.approx(f_beta(2 / 3, 2 / 4))
    assert curve[255 - 1] == pytest.approx(f_beta(1 / 1, 1 / 4))
    assert curve.max() == pytest.approx(max(f_beta(4 / 6, 1), f_beta(3 / 4, 3 / 4)))


def test_adaptive_f_beta_cuts_at_twice_the_mean():
    # mean 3.0 / 8 = .375, threshold .75: one hit, no false alarm, recall 1/4
    assert adaptive_f_beta(SALIENCY, TRUTH) == pytest.approx(f_beta(1, 1 / 4))
    assert adaptive_f_beta(np.full((2, 4), 0.9), TRUTH) == 0  # threshold 1, nothing reaches it


def test_perfect_and_empty_maps():
    nothing = np.zeros((2, 4), bool)
    for measure in (adaptive_f_beta, lambda saliency, truth: f_beta_curve(saliency, truth).max(), s_measure):
        assert measure(TRUTH.astype(float), TRUTH) == pytest.approx(1, abs=1e-9)
        assert measure(np.zeros((2, 4)), nothing) == 1
    assert adaptive_f_beta(np.zeros((2, 4)), TRUTH) == 0
    assert adaptive_f_beta(SALIENCY, nothing) == 0
    assert f_beta_curve(np.zeros((2, 4)), TRUTH).max() == 0


def test_s_measure_of_one_sided_truths_is_the_mean():
    assert s_measure(SALIENCY, np.zeros((2, 4), bool)) == pytest.approx(1 - 3.0 / 8)
    assert s_measure(SALIENCY, np.ones((2, 4), bool)) == pytest.approx(3.0 / 8)


def test_s_measure_by_hand():
    truth = np.array([[1, 0], [0, 0]], bool)
    saliency = np.array([[0.8, 0.2], [0.4, 0.0]])
    # object part: foreground .8 alone, so 2 * .8 / (.64 + 1); background 1 - (.2, .4, 0) has mean .8,
    # sample deviation .2
    foreground, background = 1.6 / 1.64, 1.6 / (0.64 + 1 + 0.2)
    object_part = foreground / 4 + background * 3 / 4
    # the centroid is pixel (0, 0), so the blocks are single pixels: no variance, similarity 1 by definition
    assert s_measure(saliency, truth) == pytest.approx(0.5 * object_part + 0.5)


def test_s_measure_region_part_by_hand():
    truth = np.array([[1, 1, 0, 0]], bool)
    saliency = np.array([[0.5, 1.0, 0.0, 0.5]])
    # centroid column mean .5, rounded to 0 (half to even), split after column 0
    # left block: one pixel, 1; right block: (1, 0, .5) against (1, 0, 0)
    mean1, mean2, covariance = 0.5, 1 / 3, ((0.5 * 2 / 3) + (-0.5 * -1 / 3) + 0) / 2
    variance1, variance2 = 0.5 / 2, (4 / 9 + 1 / 9 + 1 / 9) / 2
    right = 4 * mean1 * mean2 * covariance / ((mean1**2 + mean2**2) * (variance1 + variance2))
    region = 1 / 4 + 3 / 4 * right
    deviation = np.std([0.5, 1.0], ddof=1)
    one_side = 1.5 / (0.75**2 + 1 + deviation)  # foreground (.5, 1) and background 1 - (0, .5) are alike
    assert s_measure(saliency, truth) == pytest.approx(0.5 * one_side + 0.5 * region)

import numpy as np
import pytest

from hapicl.common.iou import iou

TRUTH = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)


def test_iou_by_hand():
    assert iou(TRUTH, TRUTH) == 1
    assert iou(~TRUTH, TRUTH) == 0
    assert iou(np.array([[1, 0, 1, 0], [1, 0, 0, 0]], bool), TRUTH) == pytest.approx(2 / 5)
    first, second = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert iou(first, second) == pytest.approx(1 / 3)


def test_two_empty_masks_agree():
    nothing = np.zeros((2, 4), bool)
    assert iou(nothing, nothing) == 1
    assert iou(nothing, TRUTH) == 0

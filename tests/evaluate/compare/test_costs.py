"""What cells will take, and which of them fit into a budget."""

import pytest

from hapicl.evaluate.compare.costs import Pace


def test_nothing_is_told_before_something_was_measured() -> None:
    assert Pace().seconds("random", 10) is None
    assert Pace().total([("random", 10)]) is None


def test_the_nearest_measured_cells_tell() -> None:
    pace = Pace()
    pace.add("random", 10, 20.0)
    assert pace.seconds("ours", 100) == 20.0
    pace.add("ours", 10, 10.0)
    assert pace.seconds("ours", 10) == 10.0  # its own
    assert pace.seconds("theirs", 10) == 15.0  # of the same images
    pace.add("random", 30, 55.0)
    assert pace.seconds("random", 30) == 55.0
    assert pace.seconds("random", 50) == pytest.approx(95.0)  # 15 at 10, 55 at 30: two seconds an image
    assert pace.seconds("random", 1) == 10.0  # no less than anything took


def test_cells_fit_in_their_order() -> None:
    pace = Pace()
    pace.add("a", 10, 10.0)
    pace.add("a", 100, 100.0)
    queue = [("a", 10), ("a", 100), ("a", 10)]
    assert [pace.fitting(queue, left) for left in (5, 10, 105, 110, 200)] == [0, 1, 1, 2, 3]
    assert pace.total(queue) == 120.0

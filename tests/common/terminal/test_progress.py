"""Progress: plain lines in a pipe, at most one every 30 seconds, with the remaining time."""

import io

import pytest

from hapicl.common.terminal.progress import PlainLines, duration, no_progress, show_progress, show_totals


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_line_at_most_every_30_seconds():
    clock, stream = Clock(), io.StringIO()
    advance = PlainLines("features", 1000, stream=stream, clock=clock)
    for _ in range(10):  # 10 seconds for 50 of 1,000
        clock.now += 10
        advance(50)
    assert stream.getvalue().splitlines() == [
        "features: 150 of 1,000 (15 %), 2:50 left",
        "features: 300 of 1,000 (30 %), 2:20 left",
        "features: 450 of 1,000 (45 %), 1:50 left",
    ]


def test_a_pipe_stays_empty_for_what_is_soon_over():
    stream = io.StringIO()
    with show_progress("features", 3, stream=stream) as advance:
        advance(3)
    assert stream.getvalue() == ""


def test_nothing_done_yet_gives_no_line():
    clock, stream = Clock(), io.StringIO()
    advance = PlainLines("features", 1000, stream=stream, clock=clock)
    clock.now += 60
    advance(0)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "0:03"), (123, "2:03"), (3723, "1:02:03"), (-1, "0:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_silence():
    with no_progress("features", 3) as advance:
        advance(3)


def test_what_earlier_runs_finished_does_not_count_as_speed():
    clock, stream = Clock(), io.StringIO()
    lines = PlainLines("masks", 1000, stream=stream, clock=clock, begun=400, unit="images")
    clock.now += 30
    lines(0)
    clock.now += 30
    lines(60, failures=2)
    assert stream.getvalue() == "masks: 460 of 1,000 (46 %), 1.0 images/s, 9:00 left, 2 failed\n"


def test_a_build_in_a_pipe_left_the_log_empty(monkeypatch):
    monkeypatch.setattr("hapicl.common.terminal.progress.LINE_SECONDS", 0.0)
    stream = io.StringIO()
    with show_totals("masks", stream=stream) as move:
        move(10, 40, 0)
        move(20, 40, 1)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("masks: 20 of 40 (50 %), ")
    assert line.endswith("0:00 left, 1 failed")

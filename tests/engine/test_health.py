"""Signs of health have known values, and the words name what is wrong."""

import re

import pytest
import torch

from hapicl.engine.health import collapse_metrics, health_warnings


def test_an_even_spread_and_one_point_have_their_known_values():
    torch.manual_seed(0)
    even = collapse_metrics(torch.randn(20_000, 16))
    assert even["embedding/std"].item() == pytest.approx(1.0, abs=0.02)
    assert even["embedding/effective_rank"].item() == pytest.approx(16.0, abs=0.1)
    point = collapse_metrics(torch.randn(1, 16).expand(64, 16))
    assert point["embedding/std"].item() == pytest.approx(0.0, abs=1e-5)


def test_rows_on_a_line_have_rank_one_and_the_scale_does_not_matter():
    rows = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]).repeat(8, 1)
    assert collapse_metrics(rows)["embedding/effective_rank"].item() == pytest.approx(1.0, abs=1e-4)
    torch.manual_seed(0)
    values = torch.randn(50, 8)
    torch.testing.assert_close(collapse_metrics(values), collapse_metrics(1000 * values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"embedding/std": 0.01, "embedding/effective_rank": 5.0}, "collapse: .*nearly one point"),
        ({"embedding/std": 0.9, "embedding/effective_rank": 1.2}, "collapse: .*one direction"),
        ({"speed/data_wait_fraction": 0.5}, r"starving: 50% .*--workers \(now 2\)"),
        ({"loss/instance": 4.16}, "not learning: instance is still at chance"),
    ],
)
def test_what_is_wrong_is_said_in_words(values, words):
    (sentence,) = health_warnings(values, {"instance": 4.159}, progress=0.5, workers=2)
    assert re.search(words, sentence)


def test_a_healthy_run_gets_no_warning():
    values = {
        "embedding/std": 0.9,
        "embedding/effective_rank": 60.0,
        "speed/data_wait_fraction": 0.03,
        "loss/instance": 3.0,
    }
    assert health_warnings(values, {"instance": 4.159}, progress=0.9, workers=2) == []
    assert (
        health_warnings({"instance": 4.159}, {"instance": 4.159}, progress=0.05) == []
    )  # early on chance is due

"""Signs of health have known values, and the words name what is wrong."""

import re

import pytest
import torch

from hapicl.engine.health import HealthWatch, StartWatch, collapse_metrics, health_warnings


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


def test_a_source_without_workers_was_told_to_raise_them():
    """`masks refine` makes its samples itself; neither more workers nor a pack helps it."""
    assert health_warnings({"speed/data_wait_fraction": 0.5}, {}, progress=0.5) == []


def test_a_healthy_run_gets_no_warning():
    values = {
        "embedding/std": 0.9,
        "embedding/effective_rank": 60.0,
        "speed/data_wait_fraction": 0.03,
        "loss/instance": 3.0,
    }
    assert health_warnings(values, {"instance": 4.159}, progress=0.9, workers=2) == []
    # early on chance is due
    assert health_warnings({"instance": 4.159}, {"instance": 4.159}, progress=0.05) == []


def told(values_by_step, *, total=100):
    """The (step, sentence) of all that a watch says of these lines."""
    watch = HealthWatch(total_steps=total)
    return [
        (step, sentence)
        for step, values in values_by_step
        for sentence in watch.judge(step, values, {"instance": 4.159})
    ]


def test_a_loss_that_climbs_through_chance_while_the_queue_fills_is_no_warning():
    climbing = [(step, {"loss/instance": 3.0 + 0.03 * step}) for step in range(1, 60)]
    falling = [(step, {"loss/instance": 5.3 - 0.03 * (step - 50)}) for step in range(60, 101)]
    assert any(abs(values["loss/instance"] / 4.159 - 1) < 0.005 for step, values in climbing if step > 20)
    assert told(climbing + falling) == []


def test_a_loss_that_stays_at_chance_is_told_once_after_a_tenth_of_the_run():
    lines = [(step, {"loss/instance": 4.16}) for step in range(1, 101)]
    ((step, sentence),) = told(lines)
    assert sentence.startswith("not learning: instance")
    assert 21 <= step <= 31


def test_embeddings_near_one_point_at_the_start_are_no_collapse_unless_they_stay():
    point, spread = {"embedding/std": 0.01}, {"embedding/std": 0.8}
    assert told([(step, point if step < 15 else spread) for step in range(1, 101)]) == []
    ((step, sentence),) = told([(step, point) for step in range(1, 101)])
    assert sentence.startswith("collapse")
    assert step == 21


def test_a_fall_below_the_start_is_told_once_it_has_lasted():
    watch = StartWatch({}, total_steps=100)
    assert watch.judge(0, {"knn/accuracy": 0.30}) == []
    assert watch.judge(20, {"knn/accuracy": 0.25}) == []
    assert watch.judge(29, {"knn/accuracy": 0.25}) == []
    (sentence,) = watch.judge(30, {"knn/accuracy": 0.25})
    assert re.search(r"forgetting: knn/accuracy is 0\.25, below the 0\.3 of the weights", sentence)
    assert watch.judge(60, {"knn/accuracy": 0.1}) == []  # once


def test_a_fall_that_mends_or_is_a_batchs_noise_is_not_told():
    watch = StartWatch({"knn/accuracy": 0.3, "embedding/effective_rank": 10.0}, total_steps=100)
    values = [(10, 0.29, 9.2), (18, 0.31, 9.1), (19, 0.29, 9.3), (28, 0.28, 9.9), (30, 0.3, 9.4)]
    for step, accuracy, rank in values:
        assert watch.judge(step, {"knn/accuracy": accuracy, "embedding/effective_rank": rank}) == []
    assert watch.judge(40, {"embedding/effective_rank": 8.0}) == []
    assert len(watch.judge(50, {"embedding/effective_rank": 8.0})) == 1


def test_runs_from_random_weights_have_no_start_to_fall_below():
    watch = StartWatch(None, total_steps=100)
    assert [watch.judge(step, {"knn/accuracy": 1 / (step + 1)}) for step in range(0, 100, 10)] == [[]] * 10

"""Collectives in two processes: gradients, order, shuffling; the loop stops and fails for all together."""

import collectives
import pytest
import torch
from two_processes import run_in_two

from hapicl.common.errors import UserError
from hapicl.engine import distributed


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return run_in_two(collectives.collectives, tmp_path_factory.mktemp("collectives"))


def test_gathered_slices_are_in_order_of_rank(both):
    for result in both:
        assert result["gathered"].tolist() == [[0.0], [1.0], [2.0], [3.0]]


def test_the_gradient_of_a_gathered_loss_is_that_of_the_joined_batch(both):
    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    values = torch.arange(4, dtype=torch.float64)[:, None] * weight
    (values @ values.T).sin().sum().backward()
    for result in both:
        torch.testing.assert_close(result["gradient"], weight.grad)


def test_dealing_moves_samples_between_processes_and_brings_them_back(both):
    dealt = torch.cat([result["dealt"] for result in both])
    assert sorted(dealt.flatten().tolist()) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert dealt.flatten().tolist() != sorted(dealt.flatten().tolist())
    assert set(both[0]["dealt"].flatten().tolist()) & {4.0, 5.0, 6.0, 7.0}  # some crossed over
    assert torch.cat([result["restored"] for result in both]).flatten().tolist() == list(range(8))


def test_one_process_deals_the_same_permutation(both):
    whole = torch.arange(8.0)[:, None]
    dealt, order = distributed.shuffle(whole, seed=1, epoch=2, step=3)
    assert torch.equal(dealt, torch.cat([result["dealt"] for result in both]))
    assert torch.equal(distributed.unshuffle(dealt, order), whole)


def test_a_flag_of_one_process_is_seen_by_all(both):
    assert [result["any"] for result in both] == [True, True]


def test_synchronised_batch_norm_is_that_of_the_joined_batch(both):
    torch.manual_seed(0)
    values = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    norm = torch.nn.BatchNorm1d(3).double()
    norm(values).pow(3).sum().backward()
    for rank, result in enumerate(both):
        torch.testing.assert_close(result["norm_gradient"], values.grad[3 * rank : 3 * rank + 3])
        torch.testing.assert_close(result["running_var"], norm.running_var)


def test_a_bad_loss_of_one_process_stops_both_with_their_parameters_kept(both):
    for result in both:
        assert "training stopped at step 2" in result["stopped"]
        assert result["kept"]
    assert "drift = nan" in both[1]["stopped"]
    assert "the loss of another process" in both[0]["stopped"]


def test_accumulation_exchanges_gradients_once_and_right(both):
    for result in both:
        torch.testing.assert_close(result["accumulated"], both[0]["accumulated"])
    torch.testing.assert_close(both[0]["accumulated"], collectives.accumulated(0, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["gpu", "cuda:x"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(UserError, match="unknown --device"):
        distributed.choose_device(name)


def test_a_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        distributed.choose_device("cuda")
    assert distributed.choose_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("cuda", "mps", "processes", "chosen"),
    [(True, True, 1, "cuda"), (False, True, 1, "mps"), (False, True, 2, "cpu"), (False, False, 1, "cpu")],
)
def test_the_best_device_that_is_there_is_taken(monkeypatch, cuda, mps, processes, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert distributed.choose_device("auto").type == chosen


def test_the_gpu_of_apple_is_refused_where_it_is_not_and_for_several_processes(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU of Apple's here; use --device cpu"):
        distributed.choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device mps is for one process"):
        distributed.choose_device("mps")

"""Evaluation under torchrun: two processes give the numbers of one and leave together; one speaks."""

import json
import shutil

import evaluations
import pytest
import torch
from two_processes import run_in_two

from hapicl.evaluate import draws, processes
from hapicl.evaluate.settings import Runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory, colour_folders, halves, squares):
    root = tmp_path_factory.mktemp("evaluations")
    for name, source in (("colours", colour_folders), ("halves", halves), ("squares", squares)):
        shutil.copytree(source, root / name)
    return root


@pytest.fixture(scope="module")
def both(folder):
    return run_in_two(evaluations.everything, folder)


@pytest.fixture(scope="module")
def alone(folder):
    return {part.__name__: part(0, 1, folder) for part in (evaluations.frozen, evaluations.tuned)}


def test_frozen_features_give_the_very_numbers_of_one_process(both, alone):
    """Whole batches are shared and the first process does the rest, so nothing is rounded otherwise."""
    expected = dict(alone["frozen"])
    held = expected.pop("here")
    assert held == 24
    for rank, result in enumerate(both):
        found = dict(result["frozen"])
        assert found.pop("here") == (0 if rank else held)
        assert found == expected


@pytest.mark.parametrize("name", list(evaluations.TUNED))
def test_two_processes_train_as_one(both, alone, name):
    """BatchNorm, dropout, void pixels, regions and padding are those of the whole batch."""
    expected = alone["tuned"][name]
    curve = dict(expected["outcome"].pop("curves")["loss"])
    assert len(curve) >= 2
    for rank, result in enumerate(both):
        found = result["tuned"][name]
        if rank == 0:
            assert dict(found["outcome"]["curves"]["loss"]) == pytest.approx(curve, rel=1e-4)
        for key, value in expected["backbone"].items():
            torch.testing.assert_close(found["backbone"][key], value, rtol=1e-3, atol=1e-4, msg=key)
        assert found["outcome"]["metrics"] == pytest.approx(expected["outcome"]["metrics"], abs=0.02)
        assert found["outcome"]["pictures"] == expected["outcome"]["pictures"]


def test_a_training_of_two_processes_goes_on_in_one(both, alone, folder):
    for result in both:
        for reason in result["rest"]["stopped"]:
            assert reason.startswith("stopped by stop_after after step 2 of ")
    place = folder / "stopped tuned_semi"
    found, backbone = evaluations.tuned_semi(Runtime(folder=place), folder)
    assert [step for step, _ in found["curves"]["loss"]] == [1, 2, 3]
    for key, value in alone["tuned"]["semi"]["backbone"].items():
        torch.testing.assert_close(backbone[key], value, rtol=1e-3, atol=1e-4, msg=key)
    found, _ = evaluations.cached_in_parts(Runtime(folder=folder / "stopped cached_in_parts"), folder)
    assert found == alone["frozen"]["cached"]  # bit for bit


def test_a_batch_that_the_processes_cannot_share_is_refused(both):
    for result in both:
        assert "a batch of 9 cannot be shared by 2 processes; take a multiple" in result["rest"]["unshared"]


def test_a_mistake_in_one_share_ends_both(both):
    messages = [result["rest"]["broken"] for result in both]
    assert all("missing.png" in message for message in messages)
    assert messages[0].startswith("process 1 cannot go on: ")


def test_layers_that_drop_draw_for_the_whole_batch(both):
    joined = torch.cat([result["rest"]["dropped"] for result in both])
    assert torch.equal(joined, evaluations.dropped(0, 1))


def test_who_waits_for_the_first_process_hears_signals(both):
    for result in both:
        assert result["rest"]["waited"] == (1, True)


def test_one_process_speaks_and_writes(both, folder):
    first, other = (result["rest"]["said"] for result in both)
    assert [code for code, _, _ in first] == [0, 0, 1, 1]  # a mistake is the runner's 1
    assert "top1 " in first[0][1]
    assert "done before" in first[1][1]
    assert "is a result of other weights, data, parameters" in first[2][2]
    assert "k = 500 neighbours" in first[3][2]
    assert [output for _, output, _ in other] == [""] * 4
    assert [mistake for _, _, mistake in other] == [""] * 4
    result = json.loads((folder / "r.json").read_text())
    assert result["hardware"]["processes"] == 2
    assert not list(folder.glob(".*.lock"))


def test_shares_are_whole_batches_in_order(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(processes, "rank", lambda number=number: number)
        shares.append(processes.share(21, 4))
    assert shares == [range(8), range(8, 16), range(16, 21)]
    monkeypatch.setattr(processes, "rank", lambda: 0)
    assert processes.share(3, 4) == range(0)  # fewer batches than processes


def test_one_process_keeps_torchs_own_layers():
    layers = torch.nn.Sequential(torch.nn.Dropout(0.5))
    draws.draw_for_all(layers)
    assert isinstance(layers[0], torch.nn.Dropout)

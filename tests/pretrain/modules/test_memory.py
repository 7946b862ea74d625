from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hapicl.common.errors import UserError
from hapicl.pretrain.losses.common import l2_normalize
from hapicl.pretrain.modules.memory import Bank, Queue, queue_length


@settings(deadline=None, max_examples=30)
@given(length=st.integers(4, 20), batches=st.lists(st.integers(1, 4), max_size=12))
def test_a_queue_holds_the_latest_keys_in_a_ring(length, batches):
    queue = Queue(length, 3, seed=0)
    expected, pointer = queue.rows.clone(), 0
    draw = torch.Generator().manual_seed(0)
    for size in batches:
        keys = torch.randn(size, 3, generator=draw)
        queue.enqueue(keys)
        for key in l2_normalize(keys):
            expected[pointer % length] = key
            pointer += 1
    assert torch.equal(queue.rows, expected)
    assert queue.pointer.item() == pointer % length


def test_rows_start_unit_and_the_same_for_one_seed():
    first, again, other = Queue(50, 8, seed=3), Queue(50, 8, seed=3), Queue(50, 8, seed=4)
    torch.testing.assert_close(first.rows.norm(dim=1), torch.ones(50))
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, other.rows)
    assert not torch.equal(first.rows, Queue(50, 8, seed=3, purpose="dense queue").rows)


def test_a_queue_survives_the_checkpoint():
    queue = Queue(6, 2, seed=0)
    queue.enqueue(torch.ones(4, 2))
    other = Queue(6, 2, seed=9)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.rows, queue.rows)
    assert other.pointer == 4


def test_queue_length_is_at_most_half_the_data_set_in_whole_batches(caplog):
    assert queue_length(None, data_set_size=1000, batch_size=64) == 448
    assert queue_length(None, data_set_size=1_281_167, batch_size=256) == 65536
    assert queue_length(None, data_set_size=70, batch_size=64) == 64
    assert queue_length(4096, data_set_size=10_000, batch_size=64) == 4096
    with pytest.raises(UserError, match="queue_length 32 is shorter than one batch"):
        queue_length(32, data_set_size=1000, batch_size=64)
    with caplog.at_level(logging.WARNING):
        assert queue_length(2048, data_set_size=1000, batch_size=64) == 2048
    assert "unstable" in caplog.text


def test_the_bank_blends_and_normalises(golden_bank):
    bank, index, embedding, after = golden_bank
    bank.write(index, embedding)
    torch.testing.assert_close(bank.rows, after, rtol=0, atol=1e-9)
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(len(after), dtype=torch.float64))


@pytest.fixture
def golden_bank(golden):
    import numpy as np

    with np.load(golden / "pirl_infonce.npz") as arrays:
        data = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    bank = Bank(*data["bank"].shape, momentum=float(data["momentum"]), seed=0).double()
    bank.rows.copy_(data["bank"])
    return bank, data["index"], data["image_embedding"], data["bank_after"]


def resumed(paths_before):
    bank = Bank(len(paths_before), 4, momentum=0.5, seed=0)
    bank.check_paths(paths_before)
    again = Bank(len(paths_before), 4, momentum=0.5, seed=1)
    again.load_state_dict(bank.state_dict())
    return again


def test_the_same_images_are_accepted_on_resume_odd_names_included():
    paths = ["a/b.jpg", "ein bild.png", "ü\n.jpg", "\udcff.jpg"]
    resumed(paths).check_paths(list(paths))


def test_a_changed_folder_is_refused_with_the_difference_named():
    bank = resumed(["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(UserError, match=r"1 gone \(b.jpg\) and 1 new \(d.jpg\)"):
        bank.check_paths(["a.jpg", "c.jpg", "d.jpg"])
    with pytest.raises(UserError, match="another order"):
        bank.check_paths(["b.jpg", "a.jpg", "c.jpg"])
    with pytest.raises(UserError, match="3 rows but there are 2 images"):
        bank.check_paths(["a.jpg", "b.jpg"])


@pytest.mark.parametrize(("queue", "keys"), [("queue", "key_global"), ("queue_dense", "key_dense_pooled")])
def test_queue_afterwards_is_that_of_the_authors_code(golden, queue, keys):
    numbers = np.load(golden / "densecl.npz")
    before = torch.from_numpy(numbers[queue].T.copy())
    ours = Queue(*before.shape, seed=0).double()
    ours.rows.copy_(before)
    ours.enqueue(torch.from_numpy(numbers[keys]))
    assert torch.allclose(ours.rows.T, torch.from_numpy(numbers[f"{queue}_after"]), atol=1e-9, rtol=0)

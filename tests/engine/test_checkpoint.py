"""Checkpoints are whole, checked and safe to load."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hapicl.engine.checkpoint import CheckpointError, find_damage, load_checkpoint, save_checkpoint


def save(folder, step, *, keep=False):
    torch.manual_seed(step)
    module = nn.Linear(20, 20)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    save_checkpoint(folder, step=step, module=module, optimizer=optimizer, config={"a": 1}, keep=keep)
    return module


def test_the_newest_and_the_one_before_are_kept(tmp_path):
    save(tmp_path, 1)
    module = save(tmp_path, 2)
    assert load_checkpoint(tmp_path / "previous.pt")["step"] == 1
    state = load_checkpoint(tmp_path / "last.pt")
    assert (state["step"], state["config"]) == (2, {"a": 1})
    assert torch.equal(state["module"]["weight"], module.weight)
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix in {".part", ".link"}]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999])
def test_a_truncated_checkpoint_is_named_and_the_one_before_offered(tmp_path, fraction):
    save(tmp_path, 1)
    save(tmp_path, 2)
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[: int(fraction * last.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged .*--resume .*previous\.pt"):
        load_checkpoint(last)


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    module = save(tmp_path, 1, keep=True)
    save(tmp_path, 2)
    save(tmp_path, 3)
    for name in ("last.pt", "previous.pt"):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checksum of .* --resume .*step_00000001\.pt"):
        load_checkpoint(tmp_path / "last.pt")
    state = load_checkpoint(tmp_path / "checkpoints" / "step_00000001.pt")
    assert torch.equal(state["module"]["weight"], module.weight)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.999999), bit=st.integers(0, 7))
def test_a_damaged_file_is_refused_or_reads_the_same(tmp_path, place, bit):
    module = save(tmp_path, 1)
    path = tmp_path / "last.pt"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        state = load_checkpoint(path)
    except CheckpointError:
        return
    assert torch.equal(state["module"]["weight"], module.weight)
    assert state["step"] == 1


def test_without_another_one_the_advice_is_to_start_again(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "last.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="must start again"):
        load_checkpoint(tmp_path / "last.pt")


def test_other_files_and_formats_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nothing\.pt"):
        load_checkpoint(tmp_path / "nothing.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of"):
        load_checkpoint(tmp_path / "weights.pt")
    torch.save({"format": 99, "module": {}, "version": "7.0"}, tmp_path / "future.pt")
    with pytest.raises(CheckpointError, match=r"format 99.*\(7\.0\), or start a new one"):
        load_checkpoint(tmp_path / "future.pt")


def test_a_checkpoint_of_before_1_0_is_refused_in_one_sentence(tmp_path):
    old = {"format": 1, "version": "0.1.0", "step": 3, "module": {}, "optimizer": {}}
    torch.save(old | {"settings": {"settings": {"accumulate": 1}}}, tmp_path / "last.pt")
    with pytest.raises(
        CheckpointError, match=r"format 1, .*wrote it \(0\.1\.0\), or start a new one"
    ) as refused:
        load_checkpoint(tmp_path / "last.pt")
    assert "\n" not in str(refused.value)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "module": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="could run foreign code"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "evil").exists()


def test_find_damage_passes_a_whole_file(tmp_path):
    save(tmp_path, 1)
    assert find_damage(tmp_path / "last.pt") is None

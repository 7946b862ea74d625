"""Checkpoints are whole, checked and safe to load."""

import errno
import os

import crafted_checkpoints
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import largest_file
from torch import nn

from hapicl.common.errors import UserError
from hapicl.engine.checkpoint import (
    CheckpointError,
    find_damage,
    load_checkpoint,
    restore,
    save_checkpoint,
)


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


def test_a_disk_without_hard_links_ended_a_run_at_its_second_checkpoint(tmp_path, monkeypatch):
    def link(file, name):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(file), None, str(name))

    monkeypatch.setattr(os, "link", link)
    for step in (1, 2):
        save(tmp_path, step, keep=True)
    kept = tmp_path / "checkpoints"
    found = ["last.pt", "previous.pt", "checkpoints/step_00000001.pt", "checkpoints/step_00000002.pt"]
    assert [load_checkpoint(tmp_path / name)["step"] for name in found] == [2, 1, 1, 2]
    assert len(list(tmp_path.iterdir())) == 3
    assert len(list(kept.iterdir())) == 2


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


def test_a_full_disk_is_one_line_and_the_checkpoints_stay(tmp_path):
    """torch raises a RuntimeError about positions, which ended in a traceback."""
    module = save(tmp_path, 1)
    save(tmp_path, 2)
    words = r"^cannot write .*last\.pt: File too large; free some space"
    with largest_file(1024), pytest.raises(UserError, match=words):
        save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2
    assert torch.equal(load_checkpoint(tmp_path / "previous.pt")["module"]["weight"], module.weight)


def test_the_same_state_has_the_same_bytes_under_every_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name, 1)
    assert (tmp_path / "a" / "last.pt").read_bytes() == (tmp_path / "b" / "last.pt").read_bytes()


def trained(kind=torch.optim.SGD, *, seed=0, **options):
    """A small network after a step, and its optimiser."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = kind(module.parameters(), lr=0.1, **options)
    module(torch.rand(5, 3)).square().sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {}), (torch.optim.AdamW, {})],
)
def test_what_was_saved_is_restored(tmp_path, kind, options):
    module, optimizer = trained(kind, **options)
    save_checkpoint(tmp_path, step=1, module=module, optimizer=optimizer, config={})
    other, its_optimizer = trained(kind, seed=1, **options)
    restore(tmp_path / "last.pt", load_checkpoint(tmp_path / "last.pt"), other, its_optimizer)
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for number, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), its_optimizer.state_dict()["state"][number][name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(step=2**70), "damaged: its 'step' is not what"),
        (lambda state: state.pop("step"), "damaged: its 'step' is not what"),
        (lambda state: state.update(step=True), "its 'step'"),
        (lambda state: state.update(step=-1), "its 'step'"),
        (lambda state: state.update(config=[1]), "its 'config'"),
        (lambda state: state.update(config={"total_steps": torch.zeros(3)}), "its 'config'"),
        (lambda state: state.update(config={"data": [{1: 2}]}), "its 'config'"),
        (lambda state: state.update(module={"weight": 3}), "its 'module'"),
        (lambda state: state.update(optimizer={}), "its 'optimizer'"),
        (lambda state: state.pop("version") and state.update(format=0), r"that wrote it \(unknown\)"),
        (lambda state: state["module"].pop("0.bias"), "does not fit this training: it lacks 0.bias"),
        (lambda state: state["module"].update(more=torch.ones(1)), "the network lacks: more"),
        (
            lambda state: state["module"].update({"0.bias": torch.ones(5)}),
            r"0.bias is float32 \(5,\), the network's is float32 \(4,\)",
        ),
        (lambda state: state["module"].update({"0.bias": torch.ones(4).double()}), "0.bias is float64"),
        (
            lambda state: state["optimizer"]["state"][0].clear(),
            r"0 is not \['momentum_buffer'\]",
        ),
        (lambda state: state["optimizer"]["state"].update({9: {}}), "names a parameter 9"),
        (
            lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.ones(2)),
            "'momentum_buffer' of parameter 0 has another form",
        ),
        (lambda state: state["optimizer"]["param_groups"].clear(), "of other parameters"),
    ],
)
def test_whole_checkpoints_of_wrong_content_are_refused(tmp_path, change, message):
    module, optimizer = trained(momentum=0.9)
    path = save_checkpoint(tmp_path, step=1, module=module, optimizer=optimizer, config={})
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        restore(path, load_checkpoint(path), module, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_crafted_checkpoints_are_refused_or_train_on(tmp_path):
    """Missing keys and tensors of another form ended in tracebacks, some of them a step later."""
    module, optimizer = trained(torch.optim.AdamW)
    good = save_checkpoint(tmp_path, step=1, module=module, optimizer=optimizer, config={})
    (tmp_path / "crafted").mkdir()
    said = []
    for number in range(300):
        path = tmp_path / "crafted" / "last.pt"
        crafted_checkpoints.craft(good, path, number)
        module, optimizer = trained(torch.optim.AdamW)
        try:
            restore(path, load_checkpoint(path), module, optimizer)
        except CheckpointError as error:
            said.append(str(error))
            continue
        module(torch.rand(5, 3)).square().sum().backward()
        optimizer.step()
    assert 150 < len(said) < 300
    assert not [text for text in said if "\n" in text]

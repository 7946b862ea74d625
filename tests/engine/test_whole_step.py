"""An error in the midst of a training loses no whole step: it is saved, to the bit, and the error says so."""

import os
import signal

import pytest
import torch
from toy import ToyModule, ToySource, assert_same_state, train
from two_processes import run_in_two

from hapicl.common.errors import UserError
from hapicl.engine import checkpoint
from hapicl.engine.checkpoint import load_checkpoint
from hapicl.engine.distributed import World
from hapicl.engine.guard import NonFiniteLossError, WholeStep
from hapicl.engine.interfaces import LoopSettings
from hapicl.engine.loop import fit
from hapicl.engine.optimizers import OptimizerSettings, build_optimizer

RARELY = {"checkpoint_every": 1000, "log_every": 1000}


class BreakingSource(ToySource):
    """A source that fails for one batch, counted from the beginning of the run."""

    def __init__(self, bad, error, **settings):
        super().__init__(**settings)
        self.bad, self.error = bad, error

    def batches(self, epoch, first_step=0):
        for step, batch in enumerate(super().batches(epoch, first_step), first_step):
            if epoch * self.steps_per_epoch + step == self.bad:
                raise self.error
            yield batch


class BreakingModule(ToyModule):
    """A module that runs out of memory in one forward or backward pass, after its buffers have changed."""

    def __init__(self, bad, where):
        super().__init__()
        self.bad, self.where = bad, where

    def forward(self, batch):
        result = super().forward(batch)
        if self.calls == self.bad + 1:
            if self.where == "forward":
                raise torch.OutOfMemoryError("not enough memory")
            result.loss.register_hook(self.fail)
        return result

    @staticmethod
    def fail(gradient):
        raise torch.OutOfMemoryError("not enough memory")


def notes(raised):
    return "\n".join(getattr(raised.value, "__notes__", []))


def test_a_mistake_in_the_data_ended_without_a_checkpoint_of_the_last_whole_step(tmp_path):
    source = BreakingSource(5, UserError("a mask does not fit its image"))
    with pytest.raises(UserError, match="does not fit") as raised:
        train(tmp_path / "parts", source=source, **RARELY)
    last = tmp_path / "parts" / "last.pt"
    assert notes(raised) == (
        f"{last} holds step 5 of 10: give the same command again, where it has it with --resume auto"
    )
    assert_same_state(train(tmp_path / "whole"), train(tmp_path / "parts", resume=True))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_running_out_of_memory_in_a_step_loses_none_before_it(tmp_path, where):
    """The pass had moved the queue and BatchNorm's statistics already."""
    broken = BreakingModule(6, where)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        train(tmp_path / "parts", module=broken, **RARELY)
    assert "holds step 6 of 10" in notes(raised)
    whole = train(tmp_path / "six", stop_after=6)
    assert_same_state(whole, (broken, whole[1]))
    assert_same_state(train(tmp_path / "whole"), train(tmp_path / "parts", resume=True))


def test_a_mistake_in_the_second_batch_of_a_step_undoes_the_first(tmp_path):
    settings = {"total": 5, "grad_accum_steps": 2}
    source = BreakingSource(7, UserError("unreadable"), steps_per_epoch=4)
    with pytest.raises(UserError) as raised:
        train(tmp_path / "parts", source=source, **RARELY, **settings)
    assert "holds step 3 of 5" in notes(raised)
    good = ToySource(steps_per_epoch=4)
    whole = train(tmp_path / "whole", source=good, **settings)
    assert_same_state(whole, train(tmp_path / "parts", source=good, resume=True, **settings))


@pytest.mark.parametrize(
    "error", [UserError("labels vanished"), OSError(28, "No space left on device"), KeyError("a bug")]
)
def test_an_error_between_two_steps_loses_none(tmp_path, error):
    def validate():
        if (tmp_path / "run" / "metrics.jsonl").exists():
            raise error
        return {"knn/accuracy": 0.5}

    with pytest.raises(type(error)) as raised:
        train(tmp_path / "run", hooks={"validate": validate}, validate_every=4, **RARELY)
    assert "holds step 4 of 10" in notes(raised)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 4


def test_a_half_done_update_is_never_saved(tmp_path):
    def fail(step, total):
        if step == 6:
            raise RuntimeError("in the midst of the update")
        return {}

    with pytest.raises(RuntimeError) as raised:
        train(tmp_path, hooks={"after_step": fail}, checkpoint_every=4)
    assert notes(raised).startswith(
        f"step 6 could not be saved (the next one was half done); {tmp_path / 'last.pt'} holds step 4 of 10"
    )
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


def test_a_module_that_swaps_its_tensors_is_never_saved_half_done(tmp_path):
    class Swapping(BreakingModule):
        def forward(self, batch):
            self.queue = self.queue.clone()
            return super().forward(batch)

    with pytest.raises(torch.OutOfMemoryError) as raised:
        train(tmp_path, module=Swapping(6, "forward"), **RARELY)
    assert (
        notes(raised) == "step 6 could not be saved (the next one was half done); there is no checkpoint yet"
    )
    assert not (tmp_path / "last.pt").exists()


def test_a_buffer_that_changes_for_the_first_time_cannot_be_put_back():
    module = ToyModule()
    whole = WholeStep(module)
    whole.begin()
    module.queue.add_(1)
    assert not whole.restore()
    whole.begin_update()
    whole.end()
    assert whole.restore()
    whole.begin()  # by now it is known
    module.queue.add_(1)
    module.layers[1].running_mean.add_(1)
    assert whole.restore()
    assert module.queue.unique().tolist() == [1.0]
    assert module.layers[1].running_mean.unique().tolist() == [0.0]


def full_disk(monkeypatch, good):
    """Let so many checkpoints be written, and none after them."""
    written = []

    def write(content, path):
        written.append(path)
        if len(written) > good:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        torch.save(content, path)

    monkeypatch.setattr(checkpoint, "write_torch", write)
    return written


def test_a_full_disk_keeps_the_checkpoint_before_and_is_told_once(tmp_path, monkeypatch):
    tries = full_disk(monkeypatch, 1)
    with pytest.raises(UserError, match="No space left on device") as raised:
        train(tmp_path, checkpoint_every=4)
    assert notes(raised).startswith(
        f"step 8 could not be saved (that is what failed); {tmp_path / 'last.pt'} holds step 4 of 10"
    )
    assert len(tries) == 2
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4
    assert list(tmp_path.glob(".*")) == []


def test_an_error_on_a_full_disk_says_both(tmp_path, monkeypatch):
    full_disk(monkeypatch, 1)
    source = BreakingSource(6, UserError("unreadable"))
    with pytest.raises(UserError, match="unreadable") as raised:
        train(tmp_path, source=source, checkpoint_every=4)
    assert "step 6 could not be saved (cannot write" in notes(raised)
    assert "No space left on device" in notes(raised)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


def test_nothing_is_saved_after_a_loss_that_was_not_finite(tmp_path):
    """The host has not looked yet when the data fail; the state since the bad loss is worth nothing."""
    source = BreakingSource(7, UserError("unreadable"))
    with pytest.raises(UserError, match="unreadable") as raised:
        train(tmp_path, module=ToyModule(poison_at=5), source=source, checkpoint_every=4, log_every=100)
    assert "step 7 could not be saved (training stopped at step 5, before its update: loss = nan" in notes(
        raised
    )
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4
    with pytest.raises(NonFiniteLossError) as raised:
        train(tmp_path / "other", module=ToyModule(poison_at=5), checkpoint_every=4, log_every=1)
    assert notes(raised) == ""


def test_an_error_before_the_first_step_of_a_session_leaves_what_is_there(tmp_path):
    with pytest.raises(UserError) as raised:
        train(tmp_path, source=BreakingSource(0, UserError("unreadable")))
    assert notes(raised) == ""
    assert not (tmp_path / "last.pt").exists()
    train(tmp_path, stop_after=4)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(UserError) as raised:
        train(tmp_path, source=BreakingSource(4, UserError("unreadable")), resume=True)
    assert notes(raised) == ""
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_second_ctrl_c_is_obeyed_at_once(tmp_path):
    def interrupt(step, total):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, hooks={"after_step": interrupt}, **RARELY)
    assert not (tmp_path / "last.pt").exists()


def broken_on_one(rank, size, folder):
    """One process finds a mistake in its batch; gives what each raised and what it noted."""
    module = ToyModule()
    optimizer = build_optimizer(
        module, OptimizerSettings(name="sgd", base_lr=1.0), batch_size=8, device=torch.device("cpu")
    )
    source = BreakingSource(5 if rank == 1 else -1, UserError("unreadable"), rank=rank, world_size=size)
    try:
        fit(
            module,
            source,
            optimizer,
            LoopSettings(total_steps=10, **RARELY),
            world=World(rank=rank, size=size),
            folder=folder / "run",
        )
    except UserError as error:
        return str(error), getattr(error, "__notes__", [])
    return None


@pytest.mark.slow
def test_a_mistake_in_the_data_of_one_process_ends_all_after_a_checkpoint(tmp_path):
    """The others waited for it, and no one saved."""
    first, second = run_in_two(broken_on_one, tmp_path)
    assert first[0] == "process 1 cannot go on: unreadable"
    assert first[1][0].startswith(f"{tmp_path / 'run' / 'last.pt'} holds step 5 of 10")
    assert second == ("unreadable", [])
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 5

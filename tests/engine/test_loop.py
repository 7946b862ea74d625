"""The loop resumes exactly, stops on signals and bad losses, and never waits for the device in between."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from toy import ToyModule, ToySource, assert_same_state, train

from hapicl.engine.checkpoint import load_checkpoint
from hapicl.engine.guard import NonFiniteLossError
from hapicl.engine.loggers.run_files import read_metrics


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_ten_steps_equal_four_and_six(tmp_path, optimizer):
    whole = train(tmp_path / "whole", optimizer=optimizer)
    part = train(tmp_path / "parts", optimizer=optimizer, stop_after=4)
    assert part[2].step == 4
    assert part[2].stopped_by == "stop_after"
    rest = train(tmp_path / "parts", optimizer=optimizer, resume=True)
    assert rest[2].step == 10
    assert rest[2].stopped_by is None
    assert_same_state(whole, rest)
    assert whole[0].queue.abs().sum() > 0


def test_a_resume_with_accumulation_starts_at_the_right_batch(tmp_path):
    source = ToySource(steps_per_epoch=5)
    whole = train(tmp_path / "whole", total=4, grad_accum_steps=2, source=source)
    train(tmp_path / "parts", total=4, grad_accum_steps=2, source=source, stop_after=1)
    assert_same_state(
        whole, train(tmp_path / "parts", total=4, grad_accum_steps=2, source=source, resume=True)
    )


def test_accumulated_gradients_are_those_of_the_joined_batch():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 3)

        def forward(self, batch):
            loss = (self.layer(batch) - 1).square().mean()
            return SimpleNamespace(loss=loss, loss_terms={}, metrics={}, embeddings=None, references={})

    class Halves(ToySource):
        def batches(self, epoch, first_step=0):
            for whole in ToySource().batches(epoch, first_step // 2):
                yield from whole.chunk(2)

    torch.manual_seed(1)
    joined, split = Linear(), Linear()
    split.load_state_dict(joined.state_dict())
    train(module=joined, total=3)
    source = Halves(steps_per_epoch=6)
    train(module=split, total=3, grad_accum_steps=2, source=source)
    torch.testing.assert_close(joined.layer.weight, split.layer.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_within_one_step(tmp_path, number):
    def kill_at_four(step, total):
        if step == 3:
            os.kill(os.getpid(), number)
        return {}

    before = signal.getsignal(number)
    _, _, result = train(tmp_path / "parts", hooks={"after_step": kill_at_four}, checkpoint_every=1000)
    assert result.stopped_by == signal.Signals(number).name
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == result.step == 4
    assert signal.getsignal(number) == before
    assert_same_state(train(tmp_path / "whole"), train(tmp_path / "parts", resume=True))


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_a_bad_loss_changes_no_parameter_however_late_the_host_looks(tmp_path, optimizer):
    good, _, _ = train(None, total=10, optimizer=optimizer, stop_after=5)
    bad = ToyModule(poison_at=5)
    with pytest.raises(
        NonFiniteLossError,
        match=r"step 5, before its update: loss = nan, loss/drift = nan \(finite: loss/error",
    ):
        train(tmp_path, total=10, optimizer=optimizer, module=bad, log_every=4, checkpoint_every=4)
    for name, value in bad.named_parameters():
        assert torch.equal(value, good.get_parameter(name)), name
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4  # no checkpoint of the time after the bad loss
    assert bad.calls == 8  # the host looked at step 8 only


def test_a_bad_loss_stops_an_unmasked_optimiser_at_once():
    bad = ToyModule(poison_at=5)
    good, _, _ = train(None, total=10, fused=False, stop_after=5)
    with pytest.raises(NonFiniteLossError, match="step 5"):
        train(None, total=10, module=bad, fused=False, log_every=100)
    assert bad.calls == 6
    for name, value in bad.named_parameters():
        assert torch.equal(value, good.get_parameter(name)), name


def counting(original, calls):
    def counted(tensor, *arguments, **options):
        calls.append(original.__name__)
        return original(tensor, *arguments, **options)

    return counted


def test_the_loop_does_not_wait_for_the_device_between_log_lines(monkeypatch):
    waits = []
    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name), waits))
    seen = []

    def note(step, total):
        seen.append(len(waits))
        return {}

    train(total=30, log_every=100, clip_norm=1.0, hooks={"after_step": note})
    at_the_first_log = seen[1]
    assert at_the_first_log > 0  # the count works: the first step's log line reads numbers
    assert seen[1:] == [at_the_first_log] * 29


def test_metrics_hold_every_logged_step_once_after_a_resume(tmp_path):
    train(tmp_path, stop_after=4, log_every=2)
    with open(tmp_path / "metrics.jsonl", "a") as lines:  # what a crash after the checkpoint leaves
        lines.write(json.dumps({"step": 6, "loss": 1.0}) + "\n" + '{"step": 7, "lo')
    train(tmp_path, resume=True, log_every=2)
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == [1, 2, 4, 6, 8, 10]
    line = list(read_metrics(tmp_path))[-1]
    losses, embedding = {"loss", "loss/error", "loss/drift"}, {"embedding/std", "embedding/effective_rank"}
    machine = {"speed/samples_per_second", "speed/data_wait_fraction", "memory/peak_gib"}
    assert line.keys() == {"step", "epoch", "seconds", "schedule/lr", *losses, *embedding, *machine}
    assert any(entry.name.startswith("events") for entry in (tmp_path / "tensorboard").iterdir())
    assert "step 10/10" in (tmp_path / "train.log").read_text()


def test_kept_checkpoints_stay_and_validations_are_logged(tmp_path):
    train(tmp_path, keep_every=3, validate_every=5, hooks={"validate": lambda: {"knn/accuracy": 0.5}})
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000003.pt",
        "step_00000006.pt",
        "step_00000009.pt",
    ]
    assert [line["step"] for line in read_metrics(tmp_path) if "knn/accuracy" in line] == [0, 5, 10]


@pytest.mark.parametrize(
    ("total", "asked", "said"),
    [(4, 2, ""), (2, 2, "traces 1 of this session's 2 steps"), (1, 2, "traces nothing")],
)
def test_a_profile_of_a_short_run_was_left_out_without_a_word(tmp_path, total, asked, said):
    train(tmp_path, total=total, profile=asked)
    assert (tmp_path / "trace.json").exists() == (total > 1)
    log = (tmp_path / "train.log").read_text() if (tmp_path / "train.log").exists() else ""
    assert said in log
    assert ("--profile" in log) == bool(said)


def test_a_profile_is_written_without_the_tracers_own_words(tmp_path, capfd):
    train(tmp_path, total=10, profile=2)
    said = capfd.readouterr().err
    assert "profiler_" not in said
    assert "ERROR" not in said  # of a GPU that is not there, where torch came with CUDA
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())


def test_a_starving_run_says_so_once(tmp_path):
    source = ToySource()
    source.wait_seconds = 5.0
    train(tmp_path, source=source, log_every=1, workers=3)
    log = (tmp_path / "train.log").read_text()
    assert log.count("starving: 100% of the time goes to waiting for data; raise --workers (now 3)") == 1

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hapicl.common.errors import UserError
from hapicl.engine.optimizers import OptimizerSettings
from hapicl.engine.schedule import ScheduleSettings, lr_factor
from hapicl.evaluate.batches import StoredSamples, TaskBatch, TaskBatches, ordered_batches
from hapicl.evaluate.finetune import RunStopped, train
from hapicl.evaluate.settings import Runtime
from hapicl.pretrain.methods.base import Output


class Points:
    """Rows (x, 3 x) with x drawn by the sample's generator."""

    def __len__(self) -> int:
        return 10

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        x = torch.tensor([generator.normal()], dtype=torch.float32)
        return x, 3 * x


class Line(nn.Module):
    """One weight and dropout, which draws."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.dropout = nn.Dropout(0.1)

    def forward(self, batch: TaskBatch) -> Output:
        x, y = batch.values
        return Output(loss=(self.linear(self.dropout(x)) - y).square().mean())


def fit(runtime: Runtime, *, steps: int = 40, note: str = "a") -> tuple[float, list[tuple[int, float]]]:
    module = Line()
    curve = train(
        module,
        TaskBatches(Points(), batch_size=4, seed=1),
        steps=steps,
        optimizer=OptimizerSettings(base_lr=3.2, weight_decay=0.0),
        schedule=ScheduleSettings(name="cosine"),
        seed=1,
        runtime=runtime,
        config={"note": note},
    )
    return module.linear.weight.item(), curve


def test_training_finds_the_slope() -> None:
    slope, curve = fit(Runtime(), steps=300)
    assert slope == pytest.approx(3.0, abs=0.5)
    assert curve == []


def test_a_stopped_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, curve = fit(Runtime(folder=tmp_path / "whole"))
    for stop in (7, 13):
        with pytest.raises(RunStopped, match="the same command continues"):
            fit(Runtime(folder=tmp_path / "parts", stop_after=stop))
        torch.manual_seed(stop)
    again, joined = fit(Runtime(folder=tmp_path / "parts"))
    assert again == whole
    assert dict(joined)[40] == dict(curve)[40]
    assert [step for step, _ in joined] == sorted({step for step, _ in joined})


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    runtime = Runtime(folder=tmp_path)
    first, _ = fit(runtime)
    before = (tmp_path / "seed1/last.pt").stat().st_mtime_ns
    assert fit(runtime)[0] == first
    assert (tmp_path / "seed1/last.pt").stat().st_mtime_ns == before


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    fit(Runtime(folder=tmp_path))
    with pytest.raises(UserError, match=r"other settings \(note\)"):
        fit(Runtime(folder=tmp_path), note="b")


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    batches = TaskBatches(Points(), batch_size=4, seed=5)
    assert batches.steps_per_epoch == 2
    whole = list(batches.batches(3))
    rest = list(TaskBatches(Points(), batch_size=4, seed=5).batches(3, first_step=1))
    assert [batch.number for batch in whole] == [6, 7]
    assert torch.equal(whole[1].values[0], rest[0].values[0])
    assert not torch.equal(whole[0].values[0], next(batches.batches(4)).values[0])


def test_ordered_batches_give_everything_once() -> None:
    sizes = [len(values[0]) for values in ordered_batches(Points(), batch_size=4)]
    assert sizes == [4, 4, 2]


class Wrapped:
    """Samples read one by one."""

    def __init__(self, samples: StoredSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, ...]:
        return self.samples.sample(index, generator)


@pytest.mark.parametrize("workers", [0, 1])
def test_stored_samples_come_in_whole_batches_that_equal_those_read_one_by_one(workers: int) -> None:
    stored = StoredSamples(torch.randn(10, 3), torch.arange(10))
    batches, others = (
        TaskBatches(samples, batch_size=4, seed=2, workers=workers) for samples in (stored, Wrapped(stored))
    )
    pairs = zip(batches.batches(1, first_step=1), others.batches(1, first_step=1), strict=True)
    for batch, other in pairs:
        assert len(batch.values) == 2
        assert all(torch.equal(one, two) for one, two in zip(batch.values, other.values, strict=True))
    assert next(iter(batches.batches(1))).values[1].tolist() != [0, 1, 2, 3]  # shuffled


class Handlers:
    """What becomes of SIGINT and SIGTERM where the sample is read."""

    def __len__(self) -> int:
        return 1

    def sample(self, index: int, generator: np.random.Generator) -> Tensor:
        held = signal.getsignal(signal.SIGTERM) not in {signal.SIG_DFL, signal.SIG_IGN}
        return torch.tensor([signal.getsignal(signal.SIGINT) == signal.SIG_IGN, held])


def test_a_reader_died_of_the_signal_that_stops_its_run() -> None:
    """Schedulers, torchrun and a terminal send it to every process: the training ended in a traceback."""
    assert next(ordered_batches(Handlers(), batch_size=1, workers=1)).tolist() == [[True, True]]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="a batch of 11 does not fit 10"):
        TaskBatches(Points(), batch_size=11, seed=0)


def test_the_polynomial_schedule() -> None:
    settings = ScheduleSettings(name="poly", power=0.9)
    assert lr_factor(settings, 0, 100, 10) == 1.0
    assert lr_factor(settings, 75, 100, 10) == pytest.approx(0.25**0.9)

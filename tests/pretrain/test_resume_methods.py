"""Every method resumes exactly: 10 steps equal 4 and 6, every tensor equal, queues and banks included."""

import joint
import pytest
import torch

from hapicl.pretrain.engine.checkpoint import load_checkpoint
from hapicl.pretrain.engine.distributed import World
from hapicl.pretrain.engine.loop import LoopSettings, fit
from hapicl.pretrain.engine.optimizers import OptimizerSettings, ScheduleSettings, build_optimizer


class MadeUpSource:
    """Made-up batches by counter, three an epoch."""

    steps_per_epoch = 3
    wait_seconds = 0.0

    def __init__(self, needs):
        self.needs = needs

    def batches(self, epoch, first_step=0):
        for step in range(first_step, self.steps_per_epoch):
            batch = joint.made_up_batch(self.needs, 3 * epoch + step)
            batch.epoch, batch.step = epoch, step
            yield batch


def train(name, folder, *, resume=False, stop_after=None):
    method, needs = joint.build(name, **joint.CONFIGS[name])
    optimizer = build_optimizer(
        method, OptimizerSettings(lr_per_256=0.5), batch_size=joint.BATCH, device=joint.CPU
    )
    first_step = 0
    if resume:
        state = load_checkpoint(folder / "last.pt")
        method.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
        method.before_training([f"{number}.jpg" for number in range(64)])
    fit(
        method,
        MadeUpSource(needs),
        optimizer,
        LoopSettings(total_steps=10, schedule=ScheduleSettings(warmup_epochs=1), stop_after=stop_after),
        world=World(),
        folder=folder,
        first_step=first_step,
        after_step=method.after_step,
    )
    return load_checkpoint(folder / "last.pt")


@pytest.mark.parametrize("name", sorted(joint.CONFIGS))
def test_ten_steps_equal_four_and_six(tmp_path, name):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = train(name, tmp_path / "whole")
    train(name, tmp_path / "parts", stop_after=4)
    parts = train(name, tmp_path / "parts", resume=True)
    assert whole["step"] == parts["step"] == 10
    left, right = list(tensors(whole, "")), list(tensors(parts, ""))
    assert [place for place, _ in left] == [place for place, _ in right]
    pairs = zip(left, right, strict=True)
    assert [place for (place, one), (_, other) in pairs if not torch.equal(one, other)] == []
    start = joint.build(name, **joint.CONFIGS[name])[0].state_dict()
    moved = [
        key
        for key, value in start.items()
        if torch.is_tensor(value) and not value.equal(whole["module"][key])
    ]
    assert any(key.startswith("backbone.") for key in moved)


def tensors(value, place):
    """All tensors of a nested state, by place."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{place}/{key}")

"""No method makes the host wait for the device inside a step: counted at torch's own functions."""

import joint
import pytest
import torch

from hapicl.engine.distributed import World
from hapicl.engine.interfaces import Hooks, LoopSettings
from hapicl.engine.loop import fit
from hapicl.engine.optimizers import OptimizerSettings, build_optimizer

WAITING = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__")


def counting(original, calls):
    def counted(tensor, *arguments, **options):
        calls.append(original.__name__)
        return original(tensor, *arguments, **options)

    return counted


class Prepared(joint.JointSource):
    """Batches made before the loop runs, so that only the step is counted."""

    steps_per_epoch = 5

    def __init__(self, needs):
        self.made = list(joint.JointSource.batches(joint.JointSource(needs), 0))

    def batches(self, epoch, first_step=0):
        yield from (self.made[step % len(self.made)] for step in range(first_step, self.steps_per_epoch))


@pytest.mark.parametrize("name", sorted(joint.CONFIGS))
def test_a_step_does_not_wait(name, monkeypatch):
    method, needs = joint.build(name, **joint.CONFIGS[name])
    optimizer = build_optimizer(method, OptimizerSettings(), batch_size=joint.BATCH, device=joint.CPU)
    source = Prepared(needs)
    calls, after_each = [], []
    for function in WAITING:
        monkeypatch.setattr(torch.Tensor, function, counting(getattr(torch.Tensor, function), calls))

    def note(step, total):
        noted = method.after_step(step, total)
        after_each.append(list(calls))
        return noted

    fit(
        method,
        source,
        optimizer,
        LoopSettings(total_steps=5, log_every=100, clip_norm=1.0),
        world=World(),
        hooks=Hooks(after_step=note),
    )
    assert after_each[1]  # the count works: the first step's log line waits
    assert after_each[-1] == after_each[1]

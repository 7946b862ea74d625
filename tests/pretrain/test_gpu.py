"""What only a GPU shows: bf16 steps of every method without waiting for the device, and losses as on the
CPU."""

import joint
import pytest
import torch

from hapicl.engine.distributed import World
from hapicl.engine.guard import NonFiniteLossError
from hapicl.engine.interfaces import Hooks, LoopSettings
from hapicl.engine.loop import fit
from hapicl.engine.optimizers import OptimizerSettings, build_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


class OnDevice:
    """Made-up float32 batches that are on the device before the loop asks."""

    steps_per_epoch = 1000
    wait_seconds = 0.0

    def __init__(self, needs, device):
        self.made = [
            joint.made_up_batch(needs, step)
            .map_tensors(lambda value: value.float() if value.is_floating_point() else value)
            .to(device)
            for step in range(4)
        ]

    def batches(self, epoch, first_step=0):
        for step in range(first_step, self.steps_per_epoch):
            yield self.made[step % len(self.made)]


def prepare(name, optimizer="sgd"):
    device = torch.device("cuda", 0)
    method, needs = joint.build(name, **joint.CONFIGS[name])
    method = method.float().to(device)
    update = build_optimizer(method, OptimizerSettings(name=optimizer), batch_size=joint.BATCH, device=device)
    return method, OnDevice(needs, device), update, World(device=device)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", sorted(joint.CONFIGS))
def test_bf16_steps_without_waiting_for_the_device(name):
    method, source, optimizer, world = prepare(name)
    settings = LoopSettings(total_steps=8, precision="bf16", log_every=100, clip_norm=1.0)

    def watch(step, total):
        # the first step's log line waits, and warm-up may; from then on waiting is an error
        torch.cuda.set_sync_debug_mode("error" if 1 <= step < 6 else "default")
        return method.after_step(step, total)

    try:
        result = fit(method, source, optimizer, settings, world=world, hooks=Hooks(after_step=watch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.step == 8
    assert all(torch.isfinite(value).all() for value in method.parameters())
    assert result.last["memory/peak_gib"] > 0


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_a_bad_loss_on_the_device_changes_no_parameter(optimizer):
    method, source, update, world = prepare("simclr", optimizer)
    source.made[2].views[0][0] = float("nan")
    kept = {}

    def remember(step, total):
        if step == 1:
            kept.update({name: value.detach().clone() for name, value in method.named_parameters()})
        return {}

    with pytest.raises(NonFiniteLossError, match="step 2"):
        fit(
            method,
            source,
            update,
            LoopSettings(total_steps=8, log_every=4),
            world=world,
            hooks=Hooks(after_step=remember),
        )
    for name, value in method.named_parameters():
        assert torch.equal(value, kept[name]), name


def test_the_loss_on_the_device_is_that_of_the_cpu():
    method, needs = joint.build("hapicl_m", **joint.CONFIGS["hapicl_m"])
    batch = joint.made_up_batch(needs)
    on_cpu = method(batch).loss
    method, _ = joint.build("hapicl_m", **joint.CONFIGS["hapicl_m"])
    on_device = method.cuda()(batch.to(torch.device("cuda"))).loss
    torch.testing.assert_close(on_device.cpu(), on_cpu, rtol=1e-6, atol=1e-6)

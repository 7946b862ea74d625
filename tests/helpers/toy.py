"""A small module and a source of numbers, for testing the engine without methods or images."""

from types import SimpleNamespace

import torch
from torch import nn

from hapicl.engine.checkpoint import load_checkpoint
from hapicl.engine.distributed import World
from hapicl.engine.interfaces import Hooks, LoopSettings
from hapicl.engine.loggers.run_logger import RunLogger
from hapicl.engine.loop import fit
from hapicl.engine.optimizers import OptimizerSettings, build_optimizer


class ToyModule(nn.Module):
    """Squared error with a queue-like buffer, BatchNorm and dropout: all that a resume must restore."""

    def __init__(self, poison_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        self.register_buffer("queue", torch.zeros(10, 3))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.poison_at = poison_at
        self.calls = 0

    def forward(self, batch):
        values = self.layers(batch)
        error = (values - batch[:, :3]).square().mean()
        with torch.no_grad():
            self.queue.index_copy_(0, self.pointer.reshape(1) % 10, values.mean(0, keepdim=True).detach())
            self.pointer += 1
        drift = (values.mean(0) - self.queue.mean(0)).square().mean()
        if self.poison_at == self.calls:
            drift = drift * float("nan")
        self.calls += 1
        return SimpleNamespace(
            loss=error + drift,
            loss_terms={"error": error, "drift": drift},
            metrics={},
            embeddings=values,
            references={},
        )


class ToySource:
    """Batches by counter, as the loader gives them; a slice of each for every process."""

    wait_seconds = 0.001

    def __init__(self, steps_per_epoch=3, batch=8, rank=0, world_size=1):
        self.steps_per_epoch = steps_per_epoch
        self.batch, self.rank, self.world_size = batch, rank, world_size

    def batches(self, epoch, first_step=0):
        for step in range(first_step, self.steps_per_epoch):
            generator = torch.Generator().manual_seed(1000 * epoch + step)
            whole = torch.randn(self.batch, 6, generator=generator)
            yield whole.tensor_split(self.world_size)[self.rank]


CPU = torch.device("cpu")


def train(
    folder=None, *, total=10, optimizer="sgd", module=None, source=None, resume=False, fused=True, **settings
):
    """Fit a toy to the end; gives module, optimiser and result."""
    module = module or ToyModule()
    options = OptimizerSettings(name=optimizer, base_lr=1.0, fused=fused)
    update = build_optimizer(module, options, batch_size=8, device=CPU)
    first_step = 0
    if resume:
        state = load_checkpoint(folder / "last.pt")
        module.load_state_dict(state["module"])
        update.load_state_dict(state["optimizer"])
        first_step = state["step"]
    hooks = Hooks(**settings.pop("hooks", {}))
    with RunLogger(folder, total=total, resumed_step=first_step, show=False) as run_logger:
        result = fit(
            module,
            source or ToySource(),
            update,
            LoopSettings(total_steps=total, **settings),
            world=World(),
            run_logger=run_logger,
            folder=folder,
            first_step=first_step,
            hooks=hooks,
        )
    return module, update, result


def tensors(module, optimizer):
    state = dict(module.state_dict())
    for number, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    return state


def assert_same_state(one, other):
    left, right = tensors(*one[:2]), tensors(*other[:2])
    assert left.keys() == right.keys()
    different = [
        name for name in left if not torch.equal(torch.as_tensor(left[name]), torch.as_tensor(right[name]))
    ]
    assert different == []

"""What the engine does in several processes, for `two_processes.run_in_two`."""

from types import SimpleNamespace

import torch
from torch import nn
from toy import ToyModule, ToySource

from hapicl.engine import batchnorm, distributed
from hapicl.engine.guard import NonFiniteLossError
from hapicl.engine.interfaces import Hooks, LoopSettings
from hapicl.engine.loop import fit
from hapicl.engine.optimizers import OptimizerSettings, build_optimizer

CPU = torch.device("cpu")


def collectives(rank, size, folder):
    """What the functions of `engine.distributed` give in this process."""
    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    local = (torch.arange(4, dtype=torch.float64)[:, None].tensor_split(size)[rank]) * weight
    joined = distributed.gather(local)
    (joined @ joined.T).sin().sum().backward()  # the whole loss in every process
    dealt, order = distributed.shuffle(
        torch.arange(8.0)[:, None].tensor_split(size)[rank], seed=1, epoch=2, step=3
    )
    torch.manual_seed(0)
    values = torch.randn(6, 3, 4, dtype=torch.float64).tensor_split(size)[rank].clone().requires_grad_()
    norm = batchnorm.synchronise_batch_norm(nn.BatchNorm1d(3), CPU).double()
    norm(values).pow(3).sum().backward()
    return {
        "gathered": distributed.gather(torch.arange(4.0)[:, None].tensor_split(size)[rank]),
        "gradient": distributed.reduce_mean(weight.grad),
        "dealt": dealt,
        "restored": distributed.unshuffle(dealt, order),
        "any": distributed.any_process(rank == 1, distributed.host_group()),
        "norm_gradient": values.grad,
        "running_var": norm.running_var,
        "accumulated": accumulated(rank, size),
        **bad_loss(rank, size),
    }


def bad_loss(rank, size):
    """The last process's loss is not finite at step 2."""
    module = ToyModule(poison_at=2 if rank == size - 1 else None)
    optimizer = build_optimizer(module, OptimizerSettings(base_lr=1.0), batch_size=8, device=CPU)
    kept = {}

    def remember(step, total):
        if step == 1:
            kept.update({name: value.detach().clone() for name, value in module.named_parameters()})
        return {}

    world = distributed.World(rank=rank, size=size)
    source = ToySource(rank=rank, world_size=size)
    try:
        fit(
            module,
            source,
            optimizer,
            LoopSettings(total_steps=8, log_every=4),
            world=world,
            hooks=Hooks(after_step=remember),
        )
    except NonFiniteLossError as error:
        same = all(torch.equal(value, kept[name]) for name, value in module.named_parameters())
        return {"stopped": str(error), "kept": same}
    return {"stopped": "", "kept": False}


class Regression(nn.Module):
    """A loss that is a mean over samples, with a head that gets no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layer, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, batch):
        loss = (self.layer(batch) - 1).square().mean()
        return SimpleNamespace(loss=loss, loss_terms={}, metrics={}, embeddings=None, references={})


def accumulated(rank, size):
    """Weights after two updates of two batches each."""
    module = Regression()
    optimizer = build_optimizer(module, OptimizerSettings(base_lr=1.0), batch_size=8, device=CPU)
    fit(
        module,
        ToySource(steps_per_epoch=4, rank=rank, world_size=size),
        optimizer,
        LoopSettings(total_steps=2, grad_accum_steps=2),
        world=distributed.World(rank=rank, size=size),
    )
    return module.layer.weight.detach()

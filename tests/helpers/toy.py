"""A small module and a source of numbers, for testing the engine without methods or images."""

from types import SimpleNamespace

import torch
from torch import nn


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

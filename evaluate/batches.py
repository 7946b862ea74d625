"""Batches of labelled samples in an order that depends on (seed, epoch) alone: a resumed run repeats it.

With W processes each takes its contiguous part of every batch; the whole batch is that of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..common.errors import UserError
from ..common.randomness import counter_generator
from ..common.terminal.progress import Advance
from ..data.loading.worker_process import prepare_worker, start_workers
from ..engine.distributed import rank, world_size
from .settings import Runtime

Collate = Callable[[list[Any]], Any]


class Samples(Protocol):
    """A labelled data set: sample `index`, drawn with `generator` where it is augmented."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def sample(self, index: int, generator: np.random.Generator) -> Any:
        """Give one sample, tensors in a tuple."""
        ...


class StoredSamples:
    """Samples that lie in memory, such as the features of a frozen backbone; a batch is taken out at once.

    Args:
        tensors: one row a sample, such as (N, C) features and (N,) labels.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.tensors[0])

    def sample(self, index: int, generator: np.random.Generator) -> tuple[Tensor, ...]:
        """One row of each; nothing is drawn."""
        return tuple(tensor[index] for tensor in self.tensors)

    def batch(self, indices: list[int]) -> tuple[Tensor, ...]:
        """What the samples of these indices collate to."""
        return tuple(tensor[indices] for tensor in self.tensors)


@dataclass(kw_only=True)
class TaskBatch:
    """This process's part of a batch: what its samples collate to, and the counters of draws on the device.

    `number` is the batch's in the run, `first` the place of the part's first sample in the whole batch.
    """

    values: Any
    number: int
    size: int
    first: int = 0

    def __len__(self) -> int:
        """Return the number of samples of this part."""
        return self.size


class _Indexed(Dataset[Any]):
    """A map from (epoch, index) to the sample drawn with that counter."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        return self.samples.sample(index, counter_generator(self.seed, epoch, index, 0, "evaluate"))


class _Stored(Dataset[Any]):
    """A map from a list of (epoch, index) to their batch: item by item, reading costs more than training."""

    def __init__(self, samples: StoredSamples) -> None:
        self.samples = samples

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        return self.samples.batch([index for _, index in keys])


def _is_a_batch(values: Any) -> Any:
    """Collate what is a batch already."""
    return values


def _load(
    samples: Samples,
    rows: list[list[tuple[int, int]]],
    *,
    seed: int = 0,
    workers: int,
    device: torch.device | str,
    collate: Collate,
) -> Iterator[Any]:
    """Read batches of (epoch, index), tensors on the device."""
    data: Dataset[Any] = _Indexed(samples, seed)
    if isinstance(samples, StoredSamples):
        data, collate = _Stored(samples), _is_a_batch
    loader = DataLoader(
        data,
        batch_sampler=rows,
        num_workers=workers,
        worker_init_fn=prepare_worker,
        collate_fn=collate,
        # of its own: the loader draws a number when it starts, and from torch's generator that would move the
        # dropout of a run that resumes within an epoch
        generator=torch.Generator(),
    )
    for values in start_workers(loader):
        yield to_device(values, torch.device(device))


class TaskBatches:
    """Shuffled, augmented training batches of a labelled data set.

    Attributes:
        batch_size: of all processes together.
        steps_per_epoch: whole batches in an epoch; the rest of the permutation is dropped.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
        collate: Collate = default_collate,
    ) -> None:
        """Check that there is at least one batch, and that the processes can share it.

        Raises:
            UserError: if not.
        """
        if not 1 <= batch_size <= len(samples):
            raise UserError(
                f"a batch of {batch_size} does not fit {len(samples)} training samples; "
                "choose a batch size between 1 and that (--set batch_size=N)"
            )
        if batch_size % world_size():
            raise UserError(
                f"a batch of {batch_size} cannot be shared by {world_size()} processes; take a multiple of "
                "their number (--set batch_size=N), or start another number of them"
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.workers, self.device, self.collate = workers, torch.device(device), collate
        self.steps_per_epoch = len(samples) // batch_size
        self.wait_seconds = 0.0
        self.advance: Advance | None = None  # called for each batch handed out

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[TaskBatch]:
        """Give this process's part of the epoch's batches from `first_step` on, tensors on the device."""
        size = self.batch_size // world_size()
        first = rank() * size
        whole = shuffled_rows(len(self.samples), self.batch_size, seed=self.seed, epoch=epoch)
        rows = [row[first : first + size] for row in whole[first_step:]]
        parts = _load(
            self.samples,
            rows,
            seed=self.seed,
            workers=self.workers,
            device=self.device,
            collate=self.collate,
        )
        for step, values in enumerate(parts, start=first_step):
            number = epoch * self.steps_per_epoch + step
            if self.advance is not None:
                self.advance(1)
            yield TaskBatch(values=values, number=number, size=size, first=first)


def shuffled_rows(samples: int, batch_size: int, *, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    """(epoch, index) of the samples of each whole batch of an epoch, in its order."""
    order = counter_generator(seed, epoch, 0, 0, "order").permutation(samples)
    whole = order[: samples // batch_size * batch_size].reshape(-1, batch_size)
    return [[(epoch, int(index)) for index in row] for row in whole]


def ordered_batches(
    samples: Samples,
    *,
    batch_size: int,
    indices: range | None = None,
    workers: int = 0,
    device: torch.device | str = "cpu",
    collate: Collate = default_collate,
) -> Iterator[Any]:
    """Every sample, or those of `indices`, once and in order; the last batch may be smaller."""
    wanted = range(len(samples)) if indices is None else indices
    rows = [
        [(0, index) for index in wanted[start : start + batch_size]]
        for start in range(0, len(wanted), batch_size)
    ]
    return _load(samples, rows, workers=workers, device=device, collate=collate)


def shuffled_images(
    samples: Samples,
    *,
    batch_size: int,
    seed: int,
    runtime: Runtime,
    collate: Collate = default_collate,
) -> Iterator[Any]:
    """One epoch of whole training batches in an order of their own, for BatchNorm's statistics.

    Whole batches only, for a smaller last one would count as much as the others. Every process is given all
    of them, and so finds the same statistics.
    """
    return _load(
        samples,
        shuffled_rows(len(samples), min(batch_size, len(samples)), seed=seed, epoch=0),
        seed=seed,
        workers=runtime.workers,
        device=runtime.device,
        collate=collate,
    )


def to_device(values: Any, device: torch.device) -> Any:
    """Copy every tensor in nested tuples, lists and dictionaries to a device."""
    if isinstance(values, Tensor):
        return values.to(device, non_blocking=True)
    if isinstance(values, dict):
        return {key: to_device(value, device) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(to_device(value, device) for value in values)
    return values

"""Batches of labelled samples in an order that depends on (seed, epoch) alone: a resumed run repeats it."""

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
from .settings import Runtime


class Samples(Protocol):
    """A labelled data set: sample `index`, drawn with `generator` where it is augmented."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def sample(self, index: int, generator: np.random.Generator) -> Any:
        """Give one sample, tensors in a tuple."""
        ...


@dataclass(kw_only=True)
class TaskBatch:
    """One batch: what the samples collate to, and its number in the run (for draws on the device)."""

    values: Any
    number: int
    size: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.size


class _Indexed(Dataset[Any]):
    """A map from (epoch, index) to the sample drawn with that counter."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        return self.samples.sample(index, counter_generator(self.seed, epoch, index, 0, "evaluate"))


class TaskBatches:
    """Shuffled, augmented training batches of a labelled data set.

    Attributes:
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
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        """Check that there is at least one batch."""
        if not 1 <= batch_size <= len(samples):
            raise UserError(
                f"a batch of {batch_size} does not fit {len(samples)} training samples; "
                "choose a batch size between 1 and that (--set batch_size=N)"
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.workers, self.device, self.collate = workers, torch.device(device), collate
        self.steps_per_epoch = len(samples) // batch_size
        self.wait_seconds = 0.0
        self.advance: Advance | None = None  # called for each batch handed out

    def order(self, epoch: int) -> np.ndarray:
        """Permutation of the samples in this epoch, (N,) int64."""
        return counter_generator(self.seed, epoch, 0, 0, "order").permutation(len(self.samples))

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[TaskBatch]:
        """Give the epoch's batches from `first_step` on, tensors on the device."""
        order = self.order(epoch)[: self.steps_per_epoch * self.batch_size]
        rows = [
            [(epoch, int(index)) for index in row] for row in order.reshape(-1, self.batch_size)[first_step:]
        ]
        loader = DataLoader(
            _Indexed(self.samples, self.seed),
            batch_sampler=rows,
            num_workers=self.workers,
            collate_fn=self.collate,
            # of its own: the loader draws a number when it starts, and from torch's generator that would move
            # the dropout of a run that resumes within an epoch
            generator=torch.Generator(),
        )
        for step, values in enumerate(loader, start=first_step):
            number = epoch * self.steps_per_epoch + step
            if self.advance is not None:
                self.advance(1)
            yield TaskBatch(values=to_device(values, self.device), number=number, size=self.batch_size)


def ordered_batches(
    samples: Samples,
    *,
    batch_size: int,
    workers: int = 0,
    device: torch.device | str = "cpu",
    collate: Callable[[list[Any]], Any] = default_collate,
) -> Iterator[Any]:
    """Every sample once, in order, the last batch smaller: for features and tests."""
    rows = [
        [(0, index) for index in range(start, min(start + batch_size, len(samples)))]
        for start in range(0, len(samples), batch_size)
    ]
    loader = DataLoader(
        _Indexed(samples, 0),
        batch_sampler=rows,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),
    )
    for values in loader:
        yield to_device(values, torch.device(device))


def to_device(values: Any, device: torch.device) -> Any:
    """Copy every tensor in nested tuples, lists and dictionaries to a device."""
    if isinstance(values, Tensor):
        return values.to(device, non_blocking=True)
    if isinstance(values, dict):
        return {key: to_device(value, device) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(to_device(value, device) for value in values)
    return values


def shuffled_images(
    samples: Samples,
    *,
    batch_size: int,
    seed: int,
    runtime: Runtime,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> Iterator[Any]:
    """One epoch of training batches in an order of their own, for BatchNorm's statistics.

    Whole batches only, for a smaller last one would count as much as the others.
    """
    batches = TaskBatches(
        samples,
        batch_size=min(batch_size, len(samples)),
        seed=seed,
        workers=runtime.workers,
        device=runtime.device,
        collate=collate,
    )
    for batch in batches.batches(0):
        yield batch.values

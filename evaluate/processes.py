"""One evaluation in several processes, as torchrun starts them: shares of a data set, gathered in order.

What keeps the numbers those of one process: a share is a stretch of whole batches, so that every batch is
computed as one process computes it; what has no batches (a linear probe on stored features, scikit-learn, the
metrics) is done by the first process while the others wait. Without torchrun everything here is the identity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..common.errors import UserError
from ..engine.distributed import all_or_none, alone, rank, world_size

Something = TypeVar("Something")


class Leaving(Exception):
    """A process leaves before the end for a reason that is no mistake; all leave with it."""


WAIT_SECONDS = 0.02  # between two looks whether the others have come
PATIENCE = timedelta(days=30)  # fitting on the first process takes as long as it takes


def share(samples: int, batch_size: int) -> range:
    """The samples of this process, a stretch of whole batches; empty where there are fewer batches.

    Args:
        samples: of the data set.
        batch_size: in which they are computed; only the data set's last batch may be smaller.
    """
    batches = -(-samples // batch_size)
    first, stop = (batches * number // world_size() * batch_size for number in (rank(), rank() + 1))
    return range(min(first, samples), min(stop, samples))


def gather_to_first(local: Something) -> list[Something]:
    """What every process holds, in order of rank, on the first process; nothing on the others."""
    if world_size() == 1:
        return [local]
    meet()
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(local, found, group=_host_group())
    return found or []


def gather_to_all(local: Something) -> list[Something]:
    """What every process holds, in order of rank, on all of them."""
    if world_size() == 1:
        return [local]
    meet()
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, local, group=_host_group())
    return found


def largest_of_all(values: list[int]) -> list[int]:
    """The largest of each value over the processes."""
    if world_size() == 1:
        return values
    largest = torch.tensor(values)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_host_group())
    return [int(value) for value in largest]


def first_alone(work: Callable[[], Something]) -> Something:
    """Do something on the first process, as if it were the only one; every process gets what it gave.

    Raises:
        UserError: of the work; the others leave in silence.
        Leaving: of the work, in all processes.
    """
    if world_size() == 1:
        return work()
    done: list[Any] = [None, None]  # what it gave, why it left
    with together():
        if rank() == 0:
            with alone():
                try:
                    done[0] = work()
                except Leaving as reason:
                    done[1] = reason
    dist.broadcast_object_list(done, src=0, group=_host_group())
    if done[1] is not None:
        raise done[1]
    given: Something = done[0]
    return given


@contextmanager
def together() -> Iterator[None]:
    """Work on shares: its end is waited for, however long, and a mistake in one share ends all processes.

    Raises:
        UserError: see `engine.distributed.all_or_none`.
    """
    with all_or_none():
        try:
            yield
        except UserError:
            meet()
            raise
        meet()


def meet() -> None:
    """Wait until every process is here, open to signals meanwhile.

    Raises:
        RuntimeError: if another process is gone.
    """
    if world_size() == 1:
        return
    arrival: Any = dist.barrier(group=_host_group(), async_op=True)
    while not arrival.is_completed():
        time.sleep(WAIT_SECONDS)
    arrival.wait()


def _host_group() -> dist.ProcessGroup:
    """A group over the CPU that waits for long."""
    everyone = dist.group.WORLD
    assert everyone is not None, "there are several processes"
    return _patient(everyone)


@cache
def _patient(everyone: dist.ProcessGroup) -> dist.ProcessGroup:
    """The group that belongs to a process group; made together by all, when they first need it."""
    made = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(made, dist.ProcessGroup)  # every process belongs to it
    return made

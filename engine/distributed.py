"""Several processes as one: set-up under torchrun, collectives that carry gradients, shuffled batches.

Every function works without a process group too, where it is the identity, so that methods are written
once.

The rule that makes any world size train alike: each process takes its contiguous slice of the global
batch and returns the mean loss over its slice (or the whole global loss); DistributedDataParallel
averages the gradients. `gather` sums the gradients that all processes send to a slice, so both kinds of
loss end in the gradient of the global mean. Shape legend: B samples of this process, W processes.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..common.errors import UserError
from ..common.randomness import counter_generator


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0


_working_alone: ContextVar[bool] = ContextVar("working alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work as if there were no others, while they wait; inside, W is 1."""
    before = _working_alone.set(True)
    try:
        yield
    finally:
        _working_alone.reset(before)


def _in_company() -> bool:
    """Whether there is a process group, and this process is not working alone."""
    return not _working_alone.get() and dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if _in_company() else 0


def world_size() -> int:
    """Return the number of processes W, 1 without a process group."""
    return dist.get_world_size() if _in_company() else 1


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` (Apple's GPU) into a device.

    `auto` takes the first that is there of cuda, mps and cpu; of several processes, which have no collectives
    on mps, cuda or cpu.

    Raises:
        UserError: for an unknown name, or a device that is not there or not for several processes.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if name == "auto" and torch.cuda.is_available():
        name = "cuda"
    elif name == "auto":
        name = "mps" if torch.backends.mps.is_available() and alone else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown --device {name!r}; choose auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps, but torch sees no GPU of Apple's here; use --device cpu")
    if device.type == "mps" and not alone:
        raise UserError("--device mps is for one process; leave out torchrun, or use --device cpu")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "--device cuda, but torch sees no CUDA device; use --device cpu or mend the driver"
            )
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this machine has no GPU of its own: torch sees "
                f"{torch.cuda.device_count()}; start at most that many with --nproc-per-node"
            )
    return device


@contextmanager
def processes(device: str = "auto", *, timeout_minutes: float = 30) -> Iterator[World]:
    """Join the process group that torchrun announces in the environment, and leave it at the end.

    Without torchrun this is one process and no group is made. The back end is nccl on CUDA and gloo
    elsewhere.

    Args:
        device: as for `choose_device`; under torchrun `cuda` takes the GPU of the local rank.
        timeout_minutes: how long a collective waits for a process that is late before it gives up.

    Yields:
        This process's place and device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1 or (dist.is_available() and dist.is_initialized()):
        yield World(rank=rank(), size=world_size(), device=chosen)
        return
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(minutes=timeout_minutes)
    )
    try:
        yield World(rank=rank(), size=world_size(), device=chosen)
    finally:
        dist.destroy_process_group()


def _all_gather(joined: Tensor, local: Tensor) -> None:
    """Fill `joined` (W * B, ...) with everyone's (B, ...), in order of rank."""
    # torch 2.14 has a new name for it, and warns of the old one on the user's screen
    gather_tensors = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather_tensors(joined, local.contiguous())


class _Gather(torch.autograd.Function):
    """All slices in order of rank; backward sums what every process sends back to this slice."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = local.shape[0]
        joined = local.new_empty((world_size() * local.shape[0], *local.shape[1:]))
        _all_gather(joined, local)
        return joined

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)  # gloo has no reduce-scatter in the torch versions supported
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]


class _Sum(torch.autograd.Function):
    """Sum over processes; backward is the same sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def gather(local: Tensor) -> Tensor:
    """Join the slices of all processes along the first axis, with gradient to every slice.

    Args:
        local: (B, ...) of this process, the same shape on every process.

    Returns:
        (W * B, ...), in order of rank: the order of the global batch.
    """
    if world_size() == 1:
        return local
    joined: Tensor = _Gather.apply(local)
    return joined


def reduce_sum(local: Tensor) -> Tensor:
    """Sum a tensor over all processes, with gradient."""
    if world_size() == 1:
        return local
    total: Tensor = _Sum.apply(local)
    return total


def reduce_mean(local: Tensor) -> Tensor:
    """Mean of a tensor over all processes, with gradient."""
    return reduce_sum(local) / world_size()


def local_slice(joined: Tensor) -> Tensor:
    """Take this process's rows of the global batch: the inverse of `gather`, (W * B, ...) to (B, ...)."""
    return joined.tensor_split(world_size())[rank()]


@torch.no_grad()
def shuffle(local: Tensor, *, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """Deal the global batch anew over the processes (shuffle-BN, MoCo, arXiv 1911.05722 section 3.3).

    Each process then normalises other samples for the keys than for the queries, so that BatchNorm's
    statistics give nothing away. The permutation is drawn by counter, so every process draws the same and
    a resumed run draws it again. With one process it permutes the batch, which matters together with
    split BatchNorm.

    Args:
        local: (B, ...) of this process; no gradient is carried.
        seed, epoch, step: counters of the draw.

    Returns:
        (B, ...) the dealt samples, and the (W * B,) permutation for `unshuffle`.
    """
    joined = _gather_rows(local)
    drawn = counter_generator(seed, epoch, step, 0, "shuffle").permutation(len(joined))
    order = torch.from_numpy(drawn.astype(np.int64)).to(local.device, non_blocking=True)
    return joined[local_slice(order)], order


@torch.no_grad()
def unshuffle(local: Tensor, order: Tensor) -> Tensor:
    """Bring what was computed on dealt samples back to their owners, (B, ...) to (B, ...)."""
    restored = torch.empty_like(order)
    restored[order] = torch.arange(len(order), device=order.device)
    return _gather_rows(local)[local_slice(restored)]


@torch.no_grad()
def _gather_rows(local: Tensor) -> Tensor:
    """Join slices without gradient."""
    if world_size() == 1:
        return local
    joined = local.new_empty((world_size() * local.shape[0], *local.shape[1:]))
    _all_gather(joined, local)
    return joined


class _Plain(nn.Module):
    """Gives the loss beside its result: DistributedDataParallel looks for tensors in tuples only."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> tuple[Tensor, Any]:
        result = self.module(batch)
        return result.loss, result


class DataParallel(nn.Module):
    """A module whose gradients are averaged over the processes, with the module's own results.

    Parameters and buffers are taken from the first process once, here.

    Args:
        module: on its device; `module(batch).loss` is what is differentiated.
        device: the process's.
        grad_accum_steps: backward passes of an update; above 1 use `no_sync` for all but the last.
    """

    def __init__(self, module: nn.Module, device: torch.device, *, grad_accum_steps: int = 1) -> None:
        super().__init__()
        # queues and statistics are equal by construction (batchnorm.py), so they are not sent around each
        # step; torch 2.15 has renamed the option
        accepted = inspect.signature(DistributedDataParallel.__init__).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        keep_buffers: dict[str, Any] = {buffers: False}
        self._parallel = DistributedDataParallel(
            _Plain(module),
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # a weight of 0 leaves a head without gradient; with the graph fixed that costs nothing to
            # allow, but torch cannot combine a fixed graph with accumulation
            static_graph=grad_accum_steps == 1,
            find_unused_parameters=grad_accum_steps > 1,
            **keep_buffers,
        )

    def forward(self, batch: Any) -> Any:
        """Give the module's result, its loss tied to the exchange of gradients."""
        loss, result = self._parallel(batch)
        result.loss = loss
        return result

    def no_sync(self) -> AbstractContextManager[None]:
        """Give a context in which gradients are only added up here."""
        return self._parallel.no_sync()


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


class FailedElsewhere(UserError):
    """The first process has failed and says why; the others leave with the same code, and in silence."""


@contextmanager
def all_or_none() -> Iterator[None]:
    """Work that every process does on its own and that ends in all of them if one fails, before they meet.

    Without this the others would wait in their next collective for a process that has left.

    Raises:
        UserError: its own; another's, if this process had none; `FailedElsewhere` where the first says it.
    """
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        failure = error
    if world_size() == 1:
        failures = [None if failure is None else str(failure)]
    else:
        failures = [None] * world_size()
        dist.all_gather_object(failures, None if failure is None else str(failure))
    if failures[0] is not None and rank() != 0:
        raise FailedElsewhere("") from failure
    if failure is not None:
        raise failure
    other = next((number for number, message in enumerate(failures) if message is not None), None)
    if other is not None:
        raise UserError(f"process {other} cannot go on: {failures[other]}")


def host_group() -> dist.ProcessGroup | None:
    """Make a group over the CPU for `any_process`; None with one process."""
    if world_size() == 1:
        return None
    made = dist.new_group(backend="gloo")
    assert isinstance(made, dist.ProcessGroup)  # every process belongs to it
    return made


def any_process(flag: bool, group: dist.ProcessGroup | None = None) -> bool:
    """Tell whether the flag is set in any process; over a CPU group the device is not waited for."""
    if world_size() == 1:
        return flag
    seen = torch.tensor([int(flag)])
    dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=group)
    return seen.tolist() != [0]

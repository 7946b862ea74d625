"""BatchNorm over the samples a method means: all processes together, or fixed groups of the global batch.

How many groups share statistics belongs to the method, not to the machine: `groups=1` normalises over the
whole global batch (SyncBN when there are several processes), `groups=G` over G contiguous groups of it,
whatever the number of processes (split-BN on one GPU stands in for the separate BatchNorms of G GPUs). So
a run trains alike on one device and on several. Shape legend: B samples, C channels, L values per sample
and channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..common.errors import UserError
from .distributed import reduce_sum, world_size

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the samples of all processes, for any number of dimensions, back end and float type.

    torch's own SyncBatchNorm is for CUDA tensors only and is used there.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm needs (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same shape."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        # the processes may hold different numbers of values, as a detector's regions are
        held = torch.tensor(float(input.numel() // input.shape[1]), dtype=torch.float64, device=input.device)
        count = reduce_sum(held)
        mean = reduce_sum(input.sum(axes)) / count
        centred = input - mean.view(shape)
        variance = reduce_sum(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        normalised = centred * torch.rsqrt(variance + self.eps).view(shape)
        return normalised * self.weight.view(shape) + self.bias.view(shape) if self.affine else normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        _track_running(self, mean, variance)


class SplitBatchNorm(_BatchNorm):
    """BatchNorm over `groups` contiguous groups of this process's batch, one set of weights.

    The running statistics follow the mean over the groups.
    """

    def __init__(
        self, num_features: int, groups: int, eps: float = 1e-5, momentum: float | None = 0.1
    ) -> None:
        super().__init__(num_features, eps, momentum)
        self.groups = groups

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm needs (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same shape; B must be a multiple of the groups."""
        if not self.training or self.groups == 1:
            return super().forward(input)
        batch, channels = input.shape[:2]
        if batch % self.groups:
            raise UserError(
                f"a batch of {batch} does not split into {self.groups} BatchNorm groups of one size"
            )
        # Slices of the batch keep channels_last, which folding the groups into the channels does not: the
        # layers around would convert back and forth. The statistics stay in the weights' precision.
        mean = torch.zeros(self.groups, channels, dtype=self.weight.dtype, device=input.device)
        variance = torch.zeros_like(mean)
        # momentum 1 makes the "running" statistics those of the group
        normalised = [
            functional.batch_norm(*part, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part in zip(input.chunk(self.groups), mean, variance, strict=True)
        ]
        _track_running(self, mean.mean(0), variance.mean(0))
        return torch.cat(normalised)

    def extra_repr(self) -> str:
        """Show the groups in the printed module."""
        return f"{self.num_features}, groups={self.groups}, eps={self.eps}, momentum={self.momentum}"


@torch.no_grad()
def _track_running(norm: _BatchNorm, mean: Tensor, unbiased_variance: Tensor) -> None:
    """Move the running statistics towards those of one batch, as torch's BatchNorm does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 0.1 if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(unbiased_variance.to(norm.running_var.dtype), momentum)


def split_batch_norm(module: AnyModule, groups: int) -> AnyModule:
    """Give every BatchNorm of a module statistics over `groups` contiguous groups of the GLOBAL batch.

    With W processes each one holds groups / W of them. Weights and names stay. A method calls this in its
    `__init__`; what a method leaves plain is synchronised over the processes by the trainer.

    Args:
        module: changed in place and returned (a BatchNorm itself is replaced, so use the returned one).
        groups: groups in the global batch, at least 1; 1 leaves the plain BatchNorm.

    Raises:
        UserError: if the groups do not divide evenly over the processes.
    """
    if groups == 1:
        return module
    if groups % world_size():
        raise UserError(
            f"{groups} BatchNorm groups do not divide over {world_size()} processes; "
            f"choose a multiple of {world_size()}, or 1 to normalise over the global batch (--set "
            "config.batch_norm_groups=N); a run that is resumed keeps its groups: start fewer processes"
        )
    return _replace(
        module,
        lambda norm: SplitBatchNorm(norm.num_features, groups // world_size(), norm.eps, norm.momentum),
    )


@contextmanager
def one_group(module: nn.Module) -> Iterator[None]:
    """Let split BatchNorms normalise over any number of samples while the block lasts, as one group."""
    split = [part for part in module.modules() if isinstance(part, SplitBatchNorm)]
    groups = [part.groups for part in split]
    for part in split:
        part.groups = 1
    try:
        yield
    finally:
        for part, number in zip(split, groups, strict=True):
            part.groups = number


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give a module its buffers (BatchNorm's running statistics) back at the end of the block."""
    before = {name: value.clone() for name, value in module.named_buffers()}
    try:
        yield
    finally:
        for name, value in module.named_buffers():
            value.copy_(before[name])


def synchronise_batch_norm(module: AnyModule, device: torch.device) -> AnyModule:
    """Replace every plain BatchNorm by one over all processes; with one process nothing changes."""
    if world_size() == 1:
        return module
    if device.type == "cuda":
        return _replace(
            module, lambda norm: nn.SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine)
        )
    return _replace(
        module, lambda norm: SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine)
    )


def keep_activation(norm: nn.Module, fresh: nn.Module) -> None:
    """Let a BatchNorm that takes another's place also do what that one did after normalising.

    timm's BatchNorms may end in a dropout and an activation of their own (`drop`, `act`); a replacement
    without them would make a network without activations.

    Args:
        norm: the one that goes.
        fresh: changed in place; names of weights stay.
    """
    if not hasattr(norm, "act"):
        return
    fresh.drop, fresh.act = norm.drop, norm.act
    fresh.register_forward_hook(_activate)


def _activate(norm: nn.Module, inputs: tuple[Tensor, ...], normalised: Tensor) -> Tensor:
    """A forward hook, a function of the module so that copies of a network have their own."""
    activated: Tensor = norm.get_submodule("act")(norm.get_submodule("drop")(normalised))
    return activated


def _replace(module: AnyModule, make: Callable[[_BatchNorm], _BatchNorm]) -> AnyModule:
    """Swap plain BatchNorms, keeping parameters, buffers and mode."""
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if isinstance(module, plain):
        fresh = make(module)
        fresh._parameters.update(module._parameters)
        fresh._buffers.update(module._buffers)
        fresh.train(module.training)
        keep_activation(module, fresh)
        return fresh  # type: ignore[return-value]
    for name, child in module.named_children():
        replaced = _replace(child, make)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Make the running statistics of split BatchNorms the mean over processes, before they are saved."""
    if world_size() == 1:
        return
    for part in module.modules():
        if isinstance(part, SplitBatchNorm):
            for statistic in (part.running_mean, part.running_var):
                if statistic is not None:
                    dist.all_reduce(statistic)
                    statistic /= world_size()

"""Momentum (EMA) encoders: the copy, its update, its schedule, and keys computed on a dealt batch.

Shape legend: B samples of this process.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...common.errors import UserError
from ...data.loading.batch import Batch
from ...engine.distributed import shuffle, unshuffle, world_size

logger = logging.getLogger(__name__)

AnyModule = TypeVar("AnyModule", bound=nn.Module)

# MoCo (arXiv 1911.05722) ran 8 GPUs of 32 images with a BatchNorm each
SAMPLES_PER_GROUP = 32


def make_momentum_encoder(module: AnyModule) -> AnyModule:
    """Copy a module without gradient; its BatchNorm statistics are its own from here on."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_momentum(copies: Sequence[nn.Module], online: Sequence[nn.Module], momentum: float) -> None:
    """Move every parameter of the copies to momentum * copy + (1 - momentum) * online, in one foreach update.

    Buffers stay: BatchNorm statistics of a copy are its own.
    """
    targets = [parameter for module in copies for parameter in module.parameters()]
    sources = [parameter for module in online for parameter in module.parameters()]
    if targets:
        get_ema_multi_avg_fn(momentum)(targets, sources, 0)  # type: ignore[no-untyped-call]


def cosine_momentum(base: float, step: int, total: int, end: float = 1.0) -> float:
    """Momentum going from `base` to `end` over the run by a cosine (BYOL, arXiv 2006.07733, section 3.2)."""
    return end - (end - base) * (math.cos(math.pi * step / max(1, total)) + 1) / 2


def batch_norm_groups(requested: int | None, batch_size: int, *, least: int = 2) -> int:
    """How many groups of the global batch have BatchNorm statistics of their own.

    Keys whose statistics come from the same samples as the queries' give the answer away (MoCo, section
    3.3); groups over a dealt batch stand in for the BatchNorms of several GPUs.

    Args:
        requested: the config's number; None takes groups of 32 samples as published, at least two, and
            one for batches under 16, whose statistics would be noise.
        batch_size: global batch.
        least: groups at least, where the batch has 16 samples: two for keys and queries, which would share
            their statistics otherwise; one where nothing leaks, as with a memory bank.

    Raises:
        UserError: if the groups do not divide the batch.
    """
    if requested is not None:
        if batch_size % requested:
            raise UserError(
                f"batch_norm_groups {requested} does not divide the batch of {batch_size}; "
                "choose a divisor, or leave it out"
            )
        return requested
    if batch_size < SAMPLES_PER_GROUP // 2:
        return 1
    processes = world_size()
    wanted = max(least, batch_size // SAMPLES_PER_GROUP)
    if wanted == 1:
        return 1
    fitting = [
        groups for groups in range(wanted, 0, -1) if batch_size % groups == 0 and groups % processes == 0
    ]
    if not fitting and batch_size % processes == 0:
        return processes
    groups = fitting[0] if fitting else 1
    if groups == 1 and least > 1:
        logger.warning(
            "a batch of %d does not split into BatchNorm groups: keys and queries share statistics, "
            "which MoCo-like methods can exploit; choose a multiple of %d",
            batch_size,
            SAMPLES_PER_GROUP,
        )
    return groups


@torch.no_grad()
def encode_shuffled(
    encode: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, batch: Batch, *, seed: int, deal: bool
) -> tuple[Tensor, ...]:
    """Compute keys on a permuted batch (shuffle-BN) and bring them back to their owners.

    Args:
        encode: images to tensors whose first dimension is B.
        images: (B, 3, H, W).
        batch: gives the epoch and step of the draw.
        seed: the run's seed.
        deal: False runs `encode` on the batch as it is (BatchNorm over the whole global batch).

    Returns:
        What `encode` returns, in the order of `images`, without gradient.
    """
    if not deal:
        return encode(images)
    mixed, order = shuffle(images, seed=seed, epoch=batch.epoch, step=batch.step)
    return tuple(unshuffle(values, order) for values in encode(mixed))

"""BatchNorm statistics of a network that was never trained, taken from images: the fair random baseline.

A fresh network normalises with mean 0 and variance 1 whatever its layers give. Any training replaces these
numbers within some 30 steps, even at a learning rate of nearly 0, and most scores fall by it; a trained
network compared with the untouched one is compared with that accident.
Shape legend: B images, H and W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..engine.batchnorm import keep_activation

Network = TypeVar("Network", bound=nn.Module)
ENOUGH_IMAGES = 1024  # a mean over so many moves by far less than seeds do


def has_batchnorm(network: nn.Module) -> bool:
    """Whether a network keeps running statistics."""
    return bool(_norms(network))


@torch.no_grad()
def reestimate_batchnorm(
    network: nn.Module, batches: Iterable[Tensor], *, device: torch.device | str, limit: int = ENOUGH_IMAGES
) -> int:
    """Replace all running statistics by plain means over batches; no parameter changes.

    Args:
        network: moved to `device`; its mode and every momentum are put back.
        batches: (B, 3, H, W) normalised images, of one size and at least two images each.
        device: where it is computed.
        limit: images that are enough.

    Returns:
        How many images were used; 0 for a network without BatchNorm, which is left as it is.
    """
    norms = _norms(network)
    if not norms:
        return 0
    was_training, momenta = network.training, [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
    network.to(device).train()
    seen = 0
    try:
        for images in batches:
            network(images.to(device))
            seen += len(images)
            if seen >= limit:
                break
    finally:
        network.train(was_training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not seen:
        raise ValueError("no batch to estimate BatchNorm statistics from")
    return seen


def reestimated_copy(network: Network, batches: Iterable[Tensor], *, device: torch.device | str) -> Network:
    """A copy with re-estimated statistics; the network, perhaps about to be trained, is left as it is.

    BatchNorms over groups or processes become plain ones in the copy.
    """
    copied = copy.deepcopy(network)
    _make_plain(copied)
    reestimate_batchnorm(copied, batches, device=device)
    return copied


def is_untouched(network: nn.Module) -> bool:
    """Whether a network has BatchNorms and none of them has seen a batch yet."""
    norms = _norms(network)
    return bool(norms) and all(
        norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 0 for norm in norms
    )


def _make_plain(module: nn.Module) -> None:
    """Put torch's own BatchNorm in the place of every other make, in place."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            plain = nn.BatchNorm2d(child.num_features, eps=child.eps, affine=child.affine)
            plain.load_state_dict(child.state_dict(), strict=False)  # an activation may have weights too
            keep_activation(child, plain)
            setattr(module, name, plain)
        else:
            _make_plain(child)


def _norms(network: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm with running statistics."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]

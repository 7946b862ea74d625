"""Queues and banks of embeddings: buffers, so they live in every checkpoint.

Shape legend: B samples, D embedding, K queue entries, n images of the data set.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ...common.errors import UserError
from ...common.randomness import counter_generator
from ...engine.distributed import gather
from ..losses.common import l2_normalize

logger = logging.getLogger(__name__)

LONGEST_QUEUE = 65536  # MoCo, arXiv 1911.05722; what `None` chooses at most
QueueLength = Annotated[int, Field(ge=1, le=2**20)]


def queue_length(requested: int | None, *, data_set_size: int, batch_size: int) -> int:
    """Entries of a queue: the config's, or the largest multiple of the batch not above half the data set.

    A queue much longer than the data set holds the query's own past keys as negatives and is unstable.

    Args:
        requested: the config's number; None chooses, at most 65,536.
        data_set_size: images.
        batch_size: global batch.

    Raises:
        UserError: if the number asked for is smaller than one batch of keys.
    """
    if requested is None:
        half = min(LONGEST_QUEUE, data_set_size // 2)
        return max(batch_size, half // batch_size * batch_size)
    if requested < batch_size:
        raise UserError(
            f"queue_length {requested} is shorter than one batch of keys; choose a multiple of {batch_size}"
        )
    if requested > data_set_size:
        logger.warning(
            "a queue of %d entries over %d images holds older keys of the query's own image as negatives "
            "and is unstable; leave queue_length out to have half the data set",
            requested,
            data_set_size,
        )
    return requested


def random_rows(number: int, dim: int, seed: int, purpose: str) -> Tensor:
    """Unit rows of random direction drawn by counter, (number, dim) float32."""
    drawn = counter_generator(seed, 0, 0, 0, purpose).standard_normal((number, dim), dtype=np.float32)
    return l2_normalize(torch.from_numpy(drawn))


class Queue(nn.Module):
    """First-in first-out queue of unit keys, the same on every process."""

    rows: Tensor
    pointer: Tensor

    def __init__(self, length: int, dim: int, *, seed: int, purpose: str = "queue") -> None:
        """Fill with random unit rows, as MoCo does."""
        super().__init__()
        self.register_buffer("rows", random_rows(length, dim, seed, purpose))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write the normalised keys (B, D) of all processes over the oldest rows; the host never waits."""
        keys = l2_normalize(gather(keys.detach())).to(self.rows.dtype)
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.rows)
        self.rows.index_copy_(0, places, keys)
        self.pointer.copy_((self.pointer + len(keys)) % len(self.rows))


class Bank(nn.Module):
    """One unit row for each image of the data set, the same on every process.

    The image paths that the rows belong to travel in the checkpoint (`get_extra_state`), so that a changed
    folder is refused with the difference named.
    """

    rows: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, *, momentum: float, seed: int) -> None:
        """Make random unit rows (PIRL, arXiv 1912.01991), for `fill` to replace."""
        super().__init__()
        self.momentum = momentum
        self.paths: list[str] = []
        self.register_buffer("rows", random_rows(size, dim, seed, "bank"))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fill(self, index: Tensor, embeddings: Tensor) -> None:
        """Replace the rows `index` (B,) by unit embeddings (B, D) of all processes."""
        fresh = l2_normalize(gather(embeddings.detach())).to(self.rows.dtype)
        self.rows.index_copy_(0, gather(index), fresh)

    @torch.no_grad()
    def write(self, index: Tensor, embeddings: Tensor) -> None:
        """Blend the rows `index` (B,) with unit embeddings (B, D) of all processes and normalise."""
        index, fresh = gather(index), l2_normalize(gather(embeddings.detach())).to(self.rows.dtype)
        mixed = l2_normalize(self.momentum * self.rows[index] + (1 - self.momentum) * fresh)
        self.rows.index_copy_(0, index, mixed)

    def check_paths(self, paths: list[str]) -> None:
        """Remember the image paths, or compare them with those of the checkpoint.

        Raises:
            UserError: if the folder has changed since; names the difference.
        """
        if len(paths) != len(self.rows):
            raise UserError(
                f"the memory bank has {len(self.rows)} rows but there are {len(paths)} images; "
                "start a new run for another set of images"
            )
        if not self.paths:
            self.paths = list(paths)
        elif self.paths != paths:
            raise UserError(
                "the images are not those of the checkpoint's memory bank: "
                f"{path_difference(self.paths, paths)}. Restore the folder, or start a new run"
            )

    def get_extra_state(self) -> Tensor:
        """Return the paths as UTF-8 bytes, each ended by a zero (no path can hold one): (bytes,) uint8."""
        joined = "".join(f"{path}\0" for path in self.paths).encode("utf-8", "surrogateescape")
        return torch.from_numpy(np.frombuffer(joined, dtype=np.uint8).copy())

    def set_extra_state(self, state: Tensor) -> None:
        """Take the paths of a checkpoint."""
        self.paths = _decode(state)


def remembered_paths(state: dict[str, Any]) -> list[str] | None:
    """Image paths of the memory bank in a method's saved state; None where it has no bank."""
    for name, value in state.items():
        if name.endswith("bank._extra_state"):
            return _decode(value)
    return None


def _decode(state: Tensor) -> list[str]:
    """Paths from `Bank.get_extra_state`."""
    joined = state.cpu().numpy().tobytes().decode("utf-8", "surrogateescape")
    return joined.split("\0")[:-1]


def path_difference(before: list[str], now: list[str]) -> str:
    """Say in words how two path lists differ."""
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    if not gone and not new:
        return "the same paths in another order"
    parts = []
    for paths, what in ((gone, "gone"), (new, "new")):
        if paths:
            names = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
            parts.append(f"{len(paths)} {what} ({names})")
    return " and ".join(parts)

"""Whole numbers drawn on the device by counter: the same on every device, for any number of processes.

torch's generators give other numbers on a GPU than on the CPU, and several processes would have to draw for
the whole global batch to agree. Here number i of a stream is a hash of i, SplitMix64 (Steele, Lea and Flood,
OOPSLA 2014, as in Vigna's reference code), so each process computes its own numbers only and the host never
waits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...common.randomness import counter_generator
from ...data.loading.batch import Batch


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned number."""
    return value - 2**64 if value >= 2**63 else value


# SplitMix64's increment and its two multipliers
GAMMA = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def step_key(seed: int, batch: Batch, purpose: str) -> int:
    """Name the stream of what one step draws: by counter (seed, epoch, step), an int64."""
    return int(counter_generator(seed, batch.epoch, batch.step, 0, purpose).integers(-(2**63), 2**63 - 1))


def draw_integers(
    high: int, shape: tuple[int, ...], *, key: int, device: torch.device, first: int = 0
) -> Tensor:
    """Draw uniform whole numbers from 0 to `high` - 1.

    Args:
        high: at most 2**31, so that the remainder of 53 bits is uniform to 2**-22.
        shape: of the result.
        key: names the stream, see `step_key`.
        device: where they are computed.
        first: place of the first number in the stream; a process gives the place of its slice.

    Returns:
        int64 of that shape.
    """
    places = torch.arange(first + 1, first + 1 + math.prod(shape), device=device)
    return _shift_right(split_mix(places.mul_(GAMMA).add_(key)), 11).remainder_(high).view(shape)


def split_mix(state: Tensor) -> Tensor:
    """SplitMix64's output for states (int64, wrapping); changed in place and returned."""
    state.bitwise_xor_(_shift_right(state, 30)).mul_(FIRST)
    state.bitwise_xor_(_shift_right(state, 27)).mul_(SECOND)
    return state.bitwise_xor_(_shift_right(state, 31))


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift the bits of int64 right, zeros moving in (torch's own shift keeps the sign)."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)

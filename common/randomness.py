"""Randomness by counter: every draw depends on (seed, epoch, sample, view) and nothing else.

So a resumed run, another number of workers, a cache or another device draws the same crops. No global
generator is used or changed.
"""

import threading
import zlib
from functools import cache
from typing import Any

import numpy as np


def counter_generator(
    seed: int, epoch: int, sample: int, view: int, purpose: str = "geometry"
) -> np.random.Generator:
    """Give the generator of one view of one sample in one epoch (Philox, Salmon et al., SC 2011).

    Args:
        seed: the run's seed.
        epoch, sample, view: counters, each at least 0.
        purpose: what is drawn; streams of different purposes are independent, so one may draw more without
            moving another ("geometry", "photometric", "jigsaw", "negatives", ...).

    Returns:
        A fresh generator; the same arguments give the same draws on every machine.
    """
    # typed: numpy reads a list with one number from 2**63 on as floats, and loses the seed's last bits
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, _purpose_key(purpose)], np.uint64)
    return np.random.Generator(np.random.Philox(counter=[0, view, sample, epoch], key=key))


def reused_generator(
    seed: int, epoch: int, sample: int, view: int, purpose: str = "geometry"
) -> np.random.Generator:
    """Give the draws of `counter_generator` from one generator a thread, set to the counter at each call.

    For the loader's workers, which need five a sample: a new one asks the system for entropy that it then
    does not use, and costs twelve times as much. Each call takes back the generator of the call before.
    """
    bits = _reused.bits
    # tuples, which numpy takes though its types ask for arrays: cheaper to make
    state: Any = {
        "bit_generator": "Philox",
        "state": {
            "counter": (0, view, sample, epoch),
            "key": (seed & 0xFFFFFFFFFFFFFFFF, _purpose_key(purpose)),
        },
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,  # the buffer is empty
        "has_uint32": 0,
        "uinteger": 0,
    }
    bits.state = state
    return _reused.generator


class _Reused(threading.local):
    """The generator that this thread uses again and again."""

    def __init__(self) -> None:
        self.bits = np.random.Philox()
        self.generator = np.random.Generator(self.bits)


_reused = _Reused()


@cache
def _purpose_key(purpose: str) -> int:
    """The half of a generator's key that tells purposes apart."""
    return zlib.crc32(purpose.encode())

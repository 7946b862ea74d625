"""Randomness by counter: every draw depends on (seed, epoch, sample, view) and nothing else.

So a resumed run, another number of workers, a cache or another device draws the same crops. No global
generator is used or changed.
"""

import zlib

import numpy as np


def counter_generator(
    seed: int, epoch: int, sample: int, view: int, purpose: str = "geometry"
) -> np.random.Generator:
    """Give the generator of one view of one sample in one epoch (Philox, Salmon et al., SC 2011).

    Args:
        seed: the run's seed.
        epoch, sample, view: counters, each at least 0.
        purpose: what is drawn; streams of different purposes are independent, so one may draw more without
        moving
            another ("geometry", "photometric", "jigsaw", "negatives", ...).

    Returns:
        A fresh generator; the same arguments give the same draws on every machine.
    """
    key = [seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(purpose.encode())]
    return np.random.Generator(np.random.Philox(counter=[0, view, sample, epoch], key=key))

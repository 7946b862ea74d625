"""HDF5 datasets as arrays on a memory map: read without an HDF5 call, shared by all processes."""

from __future__ import annotations

import mmap
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


def memmap_dataset(dataset: h5py.Dataset, mapping: mmap.mmap) -> NDArray[Any]:
    """Give a read-only array on the memory map; a dataset repacked with chunks or filters is read whole."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.size == 0:
        values: NDArray[Any] = dataset[...]
    else:
        values = np.frombuffer(mapping, dataset.dtype, dataset.size, offset).reshape(dataset.shape)
    values.flags.writeable = False
    return values

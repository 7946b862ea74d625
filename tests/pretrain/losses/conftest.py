from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture
def golden_arrays(golden):
    """Reads one file of the original authors' numbers as tensors (float64), by its name."""

    def load(name):
        with np.load(golden / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}

    return load

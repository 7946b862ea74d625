"""The kernels' compilation: told apart from what is ready, and for the types that the loader gives."""

import os
import subprocess
import sys

import numpy as np

from hapicl.data.crop_kernel import (
    average_cells,
    compile_kernels,
    crop_share,
    draw_crop,
    kernels_are_compiled,
)
from hapicl.data.geometry import ViewGeometry, sample_geometry
from hapicl.data.masks.integral import MaskIntegral


def test_kernels_compiled_ahead_serve_the_loaders_calls():
    compile_kernels()
    assert kernels_are_compiled()
    kernels = (draw_crop, crop_share, average_cells)
    before = [len(kernel.signatures) for kernel in kernels]
    sample_geometry(np.random.default_rng(0), (20, 30))
    mask = np.pad(np.ones((5, 5), np.int32).cumsum(0).cumsum(1).astype(np.int32), ((1, 0), (1, 0)))
    integral = MaskIntegral(mask, (10, 10), "x.jpg")
    integral.crop(ViewGeometry(0, 0, 10, 10, True, False), 4)
    assert integral.fraction(ViewGeometry(1, 1, 5, 5, False, False)) == 1.0
    assert [len(kernel.signatures) for kernel in kernels] == before


def test_an_empty_cache_is_told_from_a_full_one(tmp_path):
    code = "from hapicl.data import crop_kernel as k; print(k.kernels_are_compiled()); k.compile_kernels()"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    answers = [
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()
        for _ in range(2)
    ]
    assert answers == ["False", "True"]

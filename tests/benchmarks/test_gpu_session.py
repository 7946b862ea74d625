"""The script for a machine with a GPU runs whole without one, at toy size: no surprise on the day."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

PARTS = {
    "step_overhead.json",
    "step_throughput.json",
    "step_real_input.json",
    "masks.h5",
    "claims.json",
    "refine.txt",
}
RIVALS = {"kornia": "photometric.json", "lightly": "loader.json"}  # of `pip install 'hapicl[bench]'`


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A data folder with a few photographs and the binary segmentation set, all of bright discs."""
    root = tmp_path / "sets of images"
    folders = ("imagenet_originals", "imagenet1000", "fg_human/images", "fg_human/masks")
    for name in folders:
        (root / name).mkdir(parents=True)
    for at in range(24):
        noise = np.random.default_rng(at).integers(0, 120, (96, 128, 3), np.uint8)
        mask = cv2.circle(np.zeros((96, 128), np.uint8), (40 + 2 * at, 48), 24, 255, -1)
        picture = np.where(mask[..., None] > 0, 255 - noise, noise)
        for name in folders[:3]:
            cv2.imwrite(str(root / name / f"{at}.jpg"), picture)
        cv2.imwrite(str(root / "fg_human/masks" / f"{at}.png"), mask)
    return root


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gpu_session_runs_whole_at_toy_size_and_repeats_nothing(
    repository: Path, sets: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results here"
    command = ["bash", "benchmarks/gpu_session.sh", str(results), str(sets)]
    environment = os.environ | {"TOY": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        done = subprocess.run(
            command, cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=580
        )
        assert done.returncode == 0, done.stdout + done.stderr
    parts = PARTS | {file for module, file in RIVALS.items() if find_spec(module)}
    assert {path.name for path in results.iterdir()} >= parts
    assert not list(results.glob("*.failed"))
    assert done.stdout.count("done before") == len(parts)
    assert done.stdout.count("left out") == len(PARTS) + len(RIVALS) - len(parts)

"""What every test may use: small photographs on disk, the authors' numbers, and the same seeds each time."""

import os
import pathlib
import sys

# Two workers on two cores: one thread each, set before numpy and torch read it.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import hypothesis
import numpy as np
import pytest
from PIL import Image

# How long a drawn case takes is the machine's affair, not the test's. The same cases each time, so that a
# change is judged by what it changed; `--hypothesis-profile explore` draws new ones, and more.
_MACHINE = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("machine", derandomize=True, **_MACHINE)
hypothesis.settings.register_profile("explore", max_examples=1000, **_MACHINE)
hypothesis.settings.load_profile("machine")

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
# helpers are importable by name, also in the processes that tests start
sys.path.insert(0, str(pathlib.Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def repository():
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden():
    """The folder with numbers of the original authors' code."""
    return _shared("golden", "numbers of the authors' code")


@pytest.fixture(scope="session")
def shared_data():
    """The folder with archives of real photographs."""
    return _shared("data", "archives of real photographs")


def _shared(name, what):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"../shared/{name} ({what}) is not beside this checkout")
    return folder


@pytest.fixture(autouse=True)
def _seeds():
    """Start each test from the same global seeds: layers initialise from torch's global generator."""
    np.random.seed(0)  # noqa: NPY002 - libraries draw from it
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def photographs():
    """Natural photographs, by name: (H, W, 3) uint8, the long side at most 320 pixels."""
    import skimage.data

    pictures = {}
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = Image.fromarray(getattr(skimage.data, name)())
        image.thumbnail((320, 320))
        pictures[name] = np.asarray(image)
    return pictures


@pytest.fixture
def photo_folder(tmp_path, photographs):
    """A nested folder of 8 readable images: other suffixes, other cases, a space in a name."""
    root = tmp_path / "photo folder"
    for name, picture in photographs.items():
        for folder, suffix in (("a", ".jpg"), ("b c/d", ".PNG")):
            path = root / folder / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return root


@pytest.fixture
def flat_folder(tmp_path):
    """A flat folder of 12 small made-up images, 40 to 70 pixels a side: a bright block on noise."""
    root = tmp_path / "flat"
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        height, width = generator.integers(40, 71, 2)
        image = generator.integers(0, 90, (height, width, 3), dtype=np.uint8)
        top, left = generator.integers(4, 12, 2)
        image[top : top + height // 2, left : left + width // 2] = generator.integers(150, 255, 3)
        Image.fromarray(image).save(root / f"image_{number:02d}.png")
    return root

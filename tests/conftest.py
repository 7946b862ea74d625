"""What every test may use: small photographs on disk, the authors' numbers, and the same seeds each time."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

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
GOLDEN = pathlib.Path(__file__).parent / "golden"
_NEVER_COPIED = (
    ".git",
    ".venv*",
    ".*cache",
    ".hypothesis",
    "build",
    "dist",
    "runs",
    "site",
    "demo-output",
    "*.egg-info",
)
# helpers are importable by name, also in the processes that tests start
sys.path.insert(0, str(pathlib.Path(__file__).parent / "helpers"))


@pytest.fixture(scope="session")
def repository():
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden():
    """The folder with numbers of the original authors' code."""
    return GOLDEN


@pytest.fixture(scope="session")
def wheel(repository, tmp_path_factory):
    """The wheel, built from a copy whose path holds a space, by the setuptools already installed."""
    source = tmp_path_factory.mktemp("copy of a") / "source tree"
    shutil.copytree(repository, source, ignore=shutil.ignore_patterns(*_NEVER_COPIED))
    out = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    with zipfile.ZipFile(built) as opened:
        yield opened


@pytest.fixture
def odd_originals(tmp_path):
    """A folder of JPEGs as large collections have them besides the usual ones: 13 files, all readable.

    Greyscale, CMYK, 4:4:4, progressive, turned by EXIF in all eight ways, PNG data under a JPEG's name, one
    of 8 x 500 pixels and one of 2,400 x 1,800.
    """
    root = tmp_path / "odd originals"
    root.mkdir()
    generator = np.random.default_rng(1)
    smooth = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(smooth).resize((200, 150), Image.Resampling.BICUBIC)
    picture.convert("L").save(root / "grey.JPEG")
    picture.convert("CMYK").save(root / "cmyk.JPEG")
    picture.save(root / "full colour.JPEG", subsampling=0)
    picture.save(root / "progressive.JPEG", progressive=True)
    picture.save(root / "in truth a PNG.JPEG", format="PNG")
    picture.resize((8, 500)).save(root / "elongated.JPEG")
    picture.resize((2400, 1800)).save(root / "large.JPEG")
    for turn in range(3, 9):
        exif = Image.Exif()
        exif[274] = turn
        picture.save(root / f"turned {turn}.JPEG", exif=exif)
    return root


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

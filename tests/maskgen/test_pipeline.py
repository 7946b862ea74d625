import subprocess
import sys

import cv2
import numpy as np
import pytest
from skimage import data

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.common.iou import iou
from hapicl.maskgen import RECIPES, MaskRecipe, foreground, segment
from hapicl.maskgen.saliency.spectral import spectral_saliency

HEURISTIC = [name for name, recipe in RECIPES.items() if not recipe.learned]
ODD_SIZES = [(1, 1), (2, 3), (1, 500), (3000, 2), (4, 160), (5, 7), (10, 10), (16, 16), (2000, 20)]


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A disc with a second colour on textured ground, and its truth."""
    generator = np.random.default_rng(seed)
    image = generator.normal((90, 130, 70), 12, (240, 320, 3))
    truth = cv2.circle(np.zeros((240, 320), np.uint8), (150, 130), 60, 1, -1) > 0
    image[truth] = generator.normal((190, 70, 60), 12, (int(truth.sum()), 3))
    return np.clip(image, 0, 255).astype(np.uint8), truth


@pytest.mark.parametrize("name", [name for name in HEURISTIC if name != "spectral"])
def test_recipes_find_a_disc(name: str) -> None:
    image, truth = scene()
    assert iou(foreground(image, name), truth) > 0.85
    assert segment(image, name).confidence > 0.5


@pytest.mark.parametrize("name", HEURISTIC)
def test_odd_images_have_a_defined_answer(name: str) -> None:
    generator = np.random.default_rng(0)
    for size in ODD_SIZES:
        constant = np.full((*size, 3), 7, np.uint8)
        noise = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
        halves = constant.copy()
        halves[: size[0] // 2] = 200
        for image in (constant, noise, halves):
            found = segment(image, name)
            assert foreground(image, name).shape == size
            assert found.mask.dtype == bool
            assert np.isfinite(found.saliency).all()
            assert 0 <= found.saliency.min() <= found.saliency.max() <= 1
            assert 0 <= found.confidence <= 1
            if not found.mask.any():
                assert found.confidence == 0
        assert not foreground(constant, name).any()


def test_ground_seen_through_an_object_is_ground() -> None:
    image, disc = scene()
    hole = cv2.circle(np.zeros(disc.shape, np.uint8), (150, 130), 25, 1, -1) > 0
    image[hole] = scene(1)[0][10:90, 10:90].reshape(-1, 3)[: hole.sum()]  # ground of another place
    assert iou(foreground(image), disc & ~hole) > 0.9
    filled = RECIPES["quality"].replace(max_hole=None)
    assert iou(foreground(image, filled), disc) > 0.9


@pytest.mark.parametrize("name", HEURISTIC)
def test_the_working_size(name: str) -> None:
    found = segment(data.coffee(), name)  # 400 x 600
    long_side = RECIPES[name].work_size
    assert found.mask.shape == found.saliency.shape == (round(long_side * 2 / 3), long_side)


@pytest.mark.parametrize("name", HEURISTIC)
def test_a_mask_depends_on_its_image_alone(name: str) -> None:
    first = segment(data.astronaut(), name)
    segment(scene(3)[0], name)
    cv2.setRNGSeed(99)
    again = segment(data.astronaut(), name)
    np.testing.assert_array_equal(first.mask, again.mask)
    np.testing.assert_array_equal(first.saliency, again.saliency)
    assert first.confidence == again.confidence


def test_views_and_read_only_images_are_taken() -> None:
    image, _ = scene()
    flipped = image[:, ::-1]
    flipped.flags.writeable = False
    np.testing.assert_array_equal(segment(flipped, "quality").mask, segment(flipped.copy(), "quality").mask)


def test_flat_noise_is_less_sure_than_an_object() -> None:
    generator = np.random.default_rng(1)
    noise = generator.normal(120, 2, (200, 200, 3)).astype(np.uint8)
    image, _ = scene()
    for name in ("fast", "quality"):
        assert (
            segment(noise, name).confidence < RECIPES[name].low_confidence < segment(image, name).confidence
        )


def test_spectral_saliency_sees_the_odd_one_out() -> None:
    grey = np.random.default_rng(0).normal(100, 5, (128, 128)).astype(np.float32)
    grey[60:68, 60:68] = 255
    row, column = np.unravel_index(spectral_saliency(grey).argmax(), grey.shape)
    assert abs(int(row) - 64) < 12
    assert abs(int(column) - 64) < 12


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        segment(image)


def test_unknown_and_trained_recipes_say_what_to_do() -> None:
    image, _ = scene()
    with pytest.raises(UserError, match="choose one of fast, quality"):
        foreground(image, "best")
    with pytest.raises(UserError, match="hapicl masks refine"):
        foreground(image, "refined")


@pytest.mark.parametrize(
    "wrong",
    [
        {"maps": (("magic", 1.0),)},
        {"maps": (("barrier", float("nan")),)},
        {"regions": "cells"},
        {"regions": "superpixels"},  # no map of this recipe makes any
        {"regions": "pixels"},
        {"work_size": 3},
        {"learned": 2.0},
        {"iterations": 0},
        {"looks": 2},
    ],
)
def test_recipes_check_themselves(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MaskRecipe(name="own", **wrong)
    with pytest.raises(UserError, match=next(iter(wrong))):
        build(MaskRecipe, {"name": "own", **wrong})


def test_importing_stage_one_is_light() -> None:
    code = (
        "import sys, hapicl.maskgen; assert 'numba' not in sys.modules; "
        "from hapicl.maskgen import foreground; assert callable(foreground); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from hapicl.common.errors import UserError
from hapicl.common.iou import iou
from hapicl.data.masks.reader import MaskReader
from hapicl.maskgen.building.build import build_masks, build_rows
from hapicl.maskgen.building.settings import BuildSettings
from hapicl.maskgen.inspection.score import score_masks
from hapicl.maskgen.refinement.descriptors import channel_stack, describe
from hapicl.maskgen.refinement.region_regressor import (
    learned_saliency,
    refine,
    train_on_mask_file,
    train_region_regressor,
)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc somewhere on green noise, and its truth."""
    generator = np.random.default_rng(seed)
    image = generator.normal((90, 130, 70), 12, (120, 160, 3))
    centre = int(generator.integers(50, 110)), int(generator.integers(40, 80))
    truth = cv2.circle(np.zeros((120, 160), np.uint8), centre, 28, 1, -1) > 0
    image[truth] = generator.normal((190, 70, 60), 12, (int(truth.sum()), 3))
    return np.clip(image, 0, 255).astype(np.uint8), truth


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [scene(seed) for seed in range(12)]


@pytest.fixture
def folder(tmp_path: Path, scenes: list) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number, (image, _) in enumerate(scenes):
        cv2.imwrite(str(images / f"{number:02}.png"), image[:, :, ::-1])
    return images


def test_descriptors_of_two_halves() -> None:
    work = np.zeros((20, 30, 3), np.uint8)
    work[:, 15:] = 255
    labels = np.repeat((np.arange(30) >= 15)[None], 20, axis=0).astype(np.int32)
    described = describe(labels, channel_stack(work))
    assert described.shape[0] == 2
    assert np.isfinite(described).all()
    np.testing.assert_allclose(described[:, 0], 0.5)  # mean row
    np.testing.assert_allclose(described[:, 1:3], [[0, 0.25], [0, 0.25]], atol=1e-6)  # off the centre


def test_it_learns_what_most_masks_agree_on(scenes: list) -> None:
    masks = [truth.copy() for _, truth in scenes]
    masks[3][:] = False  # two first masks went wrong
    masks[7] = ~masks[7]
    regressor = train_region_regressor([image for image, _ in scenes], masks)
    image, truth = scene(99)
    learned = learned_saliency(image, regressor)
    assert learned[truth].mean() > learned[~truth].mean() + 0.3
    assert iou(refine(image, regressor).mask, truth) > 0.85


def test_training_repeats_itself_and_travels(scenes: list) -> None:
    images, masks = [image for image, _ in scenes], [truth for _, truth in scenes]
    first, again = train_region_regressor(images, masks), train_region_regressor(images, masks)
    travelled = pickle.loads(pickle.dumps(first))
    image, _ = scene(50)
    np.testing.assert_array_equal(learned_saliency(image, first), learned_saliency(image, again))
    np.testing.assert_array_equal(learned_saliency(image, first), learned_saliency(image, travelled))


def test_odd_images_have_a_defined_answer(scenes: list) -> None:
    regressor = train_region_regressor([image for image, _ in scenes], [truth for _, truth in scenes])
    for size in ((1, 1), (2, 3), (1, 500), (10, 10)):
        found = refine(np.full((*size, 3), 9, np.uint8), regressor)
        assert not found.mask.any()
        assert found.confidence == 0


def test_too_little_to_train_on_is_said() -> None:
    with pytest.raises(UserError, match="too few to train on"):
        train_region_regressor([np.zeros((40, 40, 3), np.uint8)], [np.zeros((40, 40), bool)])


@pytest.mark.slow  # starts worker processes three times
def test_refined_file_is_complete_and_says_what_it_learned_from(
    folder: Path, tmp_path: Path, scenes: list
) -> None:
    build_masks(folder, tmp_path / "first.h5", "fast", BuildSettings(workers=1))
    (folder / "broken.jpg").write_bytes(b"no image")
    build_masks(folder, tmp_path / "first.h5", "fast", BuildSettings(workers=1, update=True))
    maker = train_on_mask_file(folder, tmp_path / "first.h5")
    build_rows(folder, tmp_path / "refined.h5", maker, settings=BuildSettings(workers=1))
    reader = MaskReader(tmp_path / "refined.h5")
    assert len(reader) == len(scenes) + 1
    assert list(reader.reasons()) == ["broken.jpg"]
    assert reader.recipe["name"] == "hybrid_drfi"
    assert (
        reader.recipe["trained"]["first_masks"]
        == MaskReader(tmp_path / "first.h5").attributes["content_digest"]
    )
    truths = tmp_path / "truths"
    truths.mkdir()
    for number, (_, truth) in enumerate(scenes):
        cv2.imwrite(str(truths / f"{number:02}.png"), truth.astype(np.uint8) * 255)
    with pytest.raises(UserError, match="--first-masks"):
        score_masks(reader.path, truths, images=folder)
    with pytest.raises(UserError, match="was not refined from"):
        score_masks(reader.path, truths, images=folder, first_masks=reader.path)
    again = score_masks(reader.path, truths, images=folder, first_masks=tmp_path / "first.h5")
    assert again.mean["s_measure"] > 0.8
    scores = [iou(reader[f"{number:02}.png"], truth) for number, (_, truth) in enumerate(scenes)]
    assert np.mean(scores) > 0.85

"""The gallery's picture."""

import numpy as np
import pytest
from PIL import Image

from hapicl.data.masks.reader import MaskReader
from hapicl.demo.folder import build_folder
from hapicl.demo.gallery import CAPTION, GAP, TILE, gallery, overlay, shown_pictures, side_by_side
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.building.settings import BuildSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("gallery of a demo")
    pictures = build_folder(out, per_class=2, seed=0)
    build_masks(pictures.images, out / "masks.h5", "fast", BuildSettings(workers=1))
    return pictures, MaskReader(out / "masks.h5")


def test_every_photograph_and_the_first_collage_of_each_class_are_shown(made):
    photographs, collages = shown_pictures(made[0])
    assert photographs == list(made[0].photographs)
    assert collages == sorted(name for name in made[0].collages if name.endswith("collage_000.jpg"))
    assert len(collages) == 9


def test_a_row_holds_image_saliency_mask_and_truth(made):
    pictures, masks = made
    name = "flower/flower.jpg"  # 427 x 640: as wide as the tile
    drawn = gallery(pictures, masks, [name], {name: 0.5})
    row = drawn[-(TILE[0] + CAPTION + GAP) : -(CAPTION + GAP)]
    tiles = [row[:, GAP + index * (TILE[1] + GAP) :][:, : TILE[1]] for index in range(4)]
    image, saliency, mask, truth = (tile[10:-10].astype(int) for tile in tiles)
    assert np.ptp(image, axis=2).max() > 50  # colour
    assert np.ptp(saliency, axis=2).max() == 0  # grey
    assert saliency.std() > 10
    assert np.abs(mask - image).mean() > 5
    assert ((truth < 30) | (truth > 225)).mean() > 0.95
    assert drawn.shape[1] == 4 * TILE[1] + 5 * GAP


def test_the_overlay_darkens_the_background_only():
    image = np.full((40, 60, 3), 200, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:15, 5:15] = True
    shown = overlay(image, mask)
    assert (shown[0, 0] == 70).all()
    assert shown[20, 20].min() > 100
    assert (image == 200).all()


def test_galleries_of_different_height_are_joined():
    joined = side_by_side(np.zeros((10, 5, 3), np.uint8), np.zeros((20, 5, 3), np.uint8))
    assert joined.shape == (20, 10 + 4 * GAP, 3)
    assert (joined[10:, :10] == 255).all()


def test_the_picture_can_be_saved(made, tmp_path):
    drawn = gallery(*made, shown_pictures(made[0])[1], {})
    Image.fromarray(drawn).save(tmp_path / "gallery.png")
    assert drawn.dtype == np.uint8

"""The photographs and their outlines."""

import importlib.metadata

import numpy as np
import pytest

from hapicl.common.errors import UserError
from hapicl.demo import photographs
from hapicl.demo.photographs import fill_polygons, load_photographs


@pytest.fixture(scope="module")
def loaded():
    return load_photographs()


def test_every_outline_lies_in_its_photograph(loaded):
    for photograph in loaded.values():
        height, width = photograph.pixels.shape[:2]
        for outline in photograph.outlines:
            x, y = np.array(outline.polygon).T
            assert x.min() >= 0, photograph.name
            assert y.min() >= 0, photograph.name
            assert x.max() < width, photograph.name
            assert y.max() < height, photograph.name


def test_backgrounds_hold_no_object(loaded):
    boxes = 0
    for photograph in loaded.values():
        for left, top, right, bottom in photograph.backgrounds:
            boxes += 1
            assert 0 <= left < right <= photograph.pixels.shape[1]
            assert 0 <= top < bottom <= photograph.pixels.shape[0]
            inside = photograph.truth()[top:bottom, left:right]
            assert not inside.any(), f"{photograph.name} {left, top, right, bottom}"
    assert boxes >= 15


def test_every_photograph_names_its_origin(loaded):
    assert all(len(photograph.credit) > 3 for photograph in loaded.values())


def test_cut_edges_are_where_the_frame_cuts(loaded):
    astronaut = loaded["astronaut.png"].outlines[0]
    assert astronaut.edges == ("bottom",)
    assert max(y for _, y in astronaut.polygon) == 511


def test_a_polygon_is_filled_with_its_border():
    mask = fill_polygons([[(1, 1), (3, 1), (3, 2), (1, 2)]], (4, 5))
    expected = np.zeros((4, 5), bool)
    expected[1:3, 1:4] = True
    assert np.array_equal(mask, expected)


def test_a_missing_picture_names_the_package_and_the_next_step(monkeypatch):
    monkeypatch.setitem(photographs.PICTURE_FOLDERS, "scikit-image", "skimage.filters")
    version = importlib.metadata.version("scikit-image")
    with pytest.raises(UserError, match=f"scikit-image {version} does not carry astronaut.png.*pip install"):
        load_photographs()

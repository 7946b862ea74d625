"""Collages: true masks, honest backgrounds, randomness by counter."""

import cv2
import numpy as np
import pytest

from hapicl.demo.collage import Cutout, cut_out, cutouts_by_label, draw_background, make_collage, paste
from hapicl.demo.photographs import fill_polygons, load_photographs


@pytest.fixture(scope="module")
def photographs():
    return list(load_photographs().values())


@pytest.fixture(scope="module")
def cutouts(photographs):
    return cutouts_by_label(photographs)


def square(edges=()):
    """A white square of 20 pixels."""
    return Cutout("square", "none", edges, np.full((20, 20, 3), 255, np.uint8), np.ones((20, 20), np.float32))


def test_the_truth_is_exactly_what_was_pasted():
    generator = np.random.default_rng(0)
    for _ in range(20):
        image, truth = paste(generator, np.zeros((60, 80, 3), np.float32), square())
        assert np.array_equal(image[..., 0] > 0, truth)
        assert 0.05 < truth.mean() < 0.45


def test_away_from_the_object_the_background_is_untouched(photographs, cutouts):
    generator = np.random.default_rng(1)
    canvas = np.clip(np.rint(draw_background(generator, photographs[-1], (240, 320))), 0, 255)
    for choices in cutouts.values():
        image, truth = paste(generator, canvas, choices[0])
        near = cv2.dilate(truth.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        changed = (image != canvas).any(axis=2)
        assert changed[~near].mean() < 0.002  # what is thinner than half a pixel is not in the truth
        assert changed[truth].mean() > 0.9


@pytest.mark.parametrize(
    ("edge", "expected"),
    [
        ("top", {"top"}),
        ("bottom", {"bottom"}),
        ("left", {"left", "right"}),  # mirrored half of the time
        ("right", {"left", "right"}),
    ],
)
def test_an_edge_cut_by_the_frame_lies_on_the_border(edge, expected):
    generator = np.random.default_rng(2)
    met = set()
    for _ in range(20):
        _, truth = paste(generator, np.zeros((60, 80, 3), np.float32), square((edge,)))
        sides = {"left": truth[:, 0], "right": truth[:, -1], "top": truth[0], "bottom": truth[-1]}
        touched = {side for side, pixels in sides.items() if pixels.any()}
        assert touched & expected
        met |= touched & expected
    assert met == expected


def test_no_object_stands_before_its_own_background(photographs, cutouts):
    made = [
        make_collage(number, choices, photographs, seed=7)
        for number in range(12)
        for choices in cutouts.values()
    ]
    assert all(collage.background != collage.source for collage in made)
    assert len({collage.background for collage in made}) >= 8


def test_a_cutout_lies_within_its_outline(photographs):
    for photograph in photographs:
        for outline in photograph.outlines:
            if "cutout" in outline.uses:
                inside = fill_polygons([outline.polygon], photograph.pixels.shape[:2])
                alpha = cut_out(photograph, outline).alpha
                assert (alpha >= 0.5).sum() < inside.sum()
                assert (alpha >= 0.5).sum() > 0.8 * inside.sum()


def test_a_collage_depends_on_its_number_and_seed_only(photographs, cutouts):
    def image(number, seed):
        return make_collage(number, cutouts["cup"], photographs, seed=seed).image

    first = image(5, 0)
    image(6, 0)
    assert np.array_equal(first, image(5, 0))
    others = [image(6, 0), image(5, 1)]
    assert all(other.shape != first.shape or not np.array_equal(other, first) for other in others)


def test_grey_pieces_are_tinted_and_coloured_ones_kept(photographs):
    by_name = {photograph.name: photograph for photograph in photographs}
    assert by_name["brick.png"].grey
    assert not by_name["rocket.jpg"].grey
    brick = draw_background(np.random.default_rng(0), by_name["brick.png"], (64, 64))
    assert np.ptp(brick.mean(axis=(0, 1))) > 1

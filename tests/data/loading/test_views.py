import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from hapicl.common.randomness import counter_generator, reused_generator
from hapicl.data.geometry import ViewGeometry
from hapicl.data.loading.batch import JigsawPolicy, Needs, ViewPolicy
from hapicl.data.loading.views import Counter, cut_patches, cut_view, draw_jigsaw, draw_views, shortest_side
from hapicl.data.masks.integral import MaskIntegral


def _integral(mask, image_size=None):
    table = np.asarray(cv2.integral(mask.astype(np.uint8)), np.int32)
    return MaskIntegral(table, image_size or mask.shape, "made.png")


@st.composite
def _placed(draw):
    """An image size and a view inside it."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    inside = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    return (height, width), ViewGeometry(top, left, *inside, draw(st.booleans()), draw(st.booleans()))


@settings(max_examples=60)
@given(_placed(), st.integers(1, 40), st.sampled_from([3, 1, 5]))
def test_cut_view_is_torchvision_s_antialiased_resized_crop(placed, size, channels):
    image_size, view = placed
    image = np.random.default_rng(1).integers(0, 256, (*image_size, channels), dtype=np.uint8)
    expected = reference.resized_crop(
        torch.from_numpy(image).permute(2, 0, 1), view.top, view.left, view.height, view.width, [size, size]
    )
    if view.hflip:
        expected = reference.horizontal_flip(expected)
    if view.vflip:
        expected = reference.vertical_flip(expected)
    got = torch.from_numpy(cut_view(image, image_size, view, size)).permute(2, 0, 1)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "view",
    [
        ViewGeometry(0, 0, 375, 500, False),  # the whole image, reduced
        ViewGeometry(275, 380, 100, 120, True),  # its last corner, enlarged
        ViewGeometry(3, 5, 224, 224, False),  # as it is
        ViewGeometry(0, 10, 375, 30, False, True),  # reduced along one side, enlarged along the other
    ],
)
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("crop_filter", ["bilinear", "bicubic"])
def test_cut_view_is_torchvision_s_at_the_size_of_photographs(view, size, crop_filter):
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    expected = reference.resized_crop(
        torch.from_numpy(image).permute(2, 0, 1),
        view.top,
        view.left,
        view.height,
        view.width,
        [size, size],
        interpolation=InterpolationMode(crop_filter),
    ).numpy()
    got = cut_view(image, (375, 500), view, size, crop_filter=crop_filter).transpose(2, 0, 1)
    np.testing.assert_array_equal(got, expected[:, :: -1 if view.vflip else 1, :: -1 if view.hflip else 1])


@settings(max_examples=60)
@given(_placed(), st.sampled_from([1, 2, 7]), st.integers(0, 99))
def test_image_made_from_the_mask_gives_the_same_crop(placed, grid, seed):
    image_size, view = placed
    mask = np.random.default_rng(seed).random(image_size) < 0.5
    image = np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    # enlarged without interpolation until grid cells are whole pixels, the area average of pixels is exact
    crop = image[view.top : view.top + view.height, view.left : view.left + view.width, 0] / 255.0
    fine = np.repeat(np.repeat(crop, grid, axis=0), grid, axis=1)
    cells = fine.reshape(grid, view.height, grid, view.width).mean(axis=(1, 3))
    cells = cells[:: -1 if view.vflip else 1, :: -1 if view.hflip else 1]
    np.testing.assert_allclose(_integral(mask).crop(view, grid), cells, atol=1e-5)
    # and the pixels that the network sees have the same share of white, at the resolution of the crop
    if view.height == view.width:
        seen = cut_view(image, image_size, view, view.height)[:, :, 0] / 255.0
        flipped = crop[:: -1 if view.vflip else 1, :: -1 if view.hflip else 1]
        np.testing.assert_array_equal(seen, flipped)


@pytest.mark.parametrize(("hflip", "vflip"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_occupancy_lies_where_the_object_is_seen(hflip, vflip):
    mask = np.zeros((80, 100), np.bool_)
    mask[5:30, 10:35] = True
    image = np.where(mask[:, :, None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    needs = Needs(views=(ViewPolicy(size=56, scale=(0.5, 1.0), hflip=hflip, vflip=vflip),), grid=7)
    for sample in range(10):
        draw = draw_views(needs, Counter(0, 0, sample), mask.shape, _integral(mask))[0]
        seen = cut_view(image, mask.shape, draw.geometry, 56)[:, :, 0] / 255.0
        cells = seen.reshape(7, 8, 7, 8).mean(axis=(1, 3))
        np.testing.assert_allclose(_integral(mask).crop(draw.geometry, 7), cells, atol=0.12)


def test_redraws_until_the_foreground_is_in_the_crop():
    mask = np.zeros((200, 200), np.bool_)
    mask[:100, :100] = True
    policy = ViewPolicy(size=32, scale=(0.05, 0.1))
    aware, blind = Needs(views=(policy,), grid=7), Needs(views=(policy,), grid=7, min_foreground=0.0)
    covered = {True: 0, False: 0}
    fallbacks = 0
    for sample in range(200):
        draw = draw_views(aware, Counter(0, 0, sample), mask.shape, _integral(mask))[0]
        fraction = _integral(mask).fraction(draw.geometry)
        assert draw.fallback == (fraction < 0.3)
        fallbacks += draw.fallback
        covered[True] += fraction >= 0.3
        plain = draw_views(blind, Counter(0, 0, sample), mask.shape, _integral(mask))[0]
        assert not plain.fallback
        covered[False] += _integral(mask).fraction(plain.geometry) >= 0.3
    # a quarter of the image is foreground: about 1 in 4 single draws hits it, and 1 - .75^6 of six draws
    assert covered[False] < 90
    assert covered[True] > 140
    assert 10 < fallbacks < 60


def test_empty_mask_falls_back_and_full_mask_never_does():
    needs = Needs(views=(ViewPolicy(), ViewPolicy()), grid=7)
    empty, full = np.zeros((50, 60), np.bool_), np.ones((50, 60), np.bool_)
    assert [draw.fallback for draw in draw_views(needs, Counter(0, 0, 0), (50, 60), _integral(empty))] == [
        True,
        True,
    ]
    assert not any(draw.fallback for draw in draw_views(needs, Counter(0, 0, 0), (50, 60), _integral(full)))


def test_views_are_independent_and_may_share_a_geometry():
    needs = Needs(views=(ViewPolicy(), ViewPolicy(), ViewPolicy(same_geometry_as=0)))
    first, second, third = draw_views(needs, Counter(0, 0, 5), (300, 400), None)
    assert first.geometry == third.geometry
    assert first.geometry != second.geometry


JIGSAW = JigsawPolicy(size=15, patch=3, grid=3, hflip=0.0)


def test_patches_cover_the_whole_crop():
    # a pixel's value is its row in one channel and its column in another; the crop has the jigsaw's own size
    rows, columns = np.mgrid[0:15, 0:15].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=2)
    seen = np.zeros((15, 15), np.int64)
    policy = JigsawPolicy(size=15, patch=3, grid=3, scale=(1.0, 1.0), hflip=0.0)
    for sample in range(300):
        draw = draw_jigsaw(policy, Counter(0, 0, sample), (15, 15))
        for number, patch in enumerate(cut_patches(image, (15, 15), policy, draw)):
            top, left = int(patch[0, 0, 0]), int(patch[0, 0, 1])
            assert top // 5 == number // 3  # reading order
            assert left // 5 == number % 3
            np.testing.assert_array_equal(patch, image[top : top + 3, left : left + 3])
            seen[top : top + 3, left : left + 3] += 1
    assert seen.min() > 0


def test_permutations_are_uniform():
    places = np.zeros((9, 9))
    drawn = set()
    for sample in range(3000):
        permutation = draw_jigsaw(JIGSAW, Counter(0, 0, sample), (60, 60)).permutation
        assert sorted(permutation) == list(range(9))
        drawn.add(tuple(permutation))
        places[np.arange(9), permutation] += 1
    assert abs(places - 3000 / 9).max() < 90  # 5 standard deviations
    assert len(drawn) > 2960  # of 362,880; all draws of a short list of permutations would repeat


def test_jigsaw_crop_is_its_own_and_large():
    needs = Needs(views=(ViewPolicy(scale=(0.08, 1.0)),), jigsaw=JigsawPolicy())
    areas = []
    for sample in range(50):
        view = draw_views(needs, Counter(0, 0, sample), (300, 400), None)[0].geometry
        jigsaw = draw_jigsaw(JigsawPolicy(), Counter(0, 0, sample), (300, 400)).geometry
        assert view != jigsaw
        areas.append(jigsaw.height * jigsaw.width / 120000)
    assert min(areas) > 0.55


def test_reduced_decode_keeps_every_crop_at_twice_its_view():
    needs = Needs(views=(ViewPolicy(size=100), ViewPolicy(size=50)))
    for sample in range(100):
        draws = draw_views(needs, Counter(0, 0, sample), (1200, 1600), None)
        side = shortest_side(needs, draws, None, (1200, 1600))
        for factor in (2, 4, 8):
            allowed = 1200 // factor >= side
            kept = all(
                min(draw.geometry.height, draw.geometry.width) / factor >= 2 * policy.size
                for policy, draw in zip(needs.views, draws, strict=True)
            )
            assert allowed == kept


@settings(max_examples=30)
@given(_placed())
def test_crop_of_a_reduced_copy_is_never_empty(placed):
    image_size, view = placed
    small = np.zeros((max(1, image_size[0] // 4), max(1, image_size[1] // 4), 3), np.uint8)
    assert cut_view(small, image_size, view, 8).shape == (8, 8, 3)


@settings(max_examples=30)
@given(
    st.integers(0, 2**64 - 1),
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 9)),
    st.sampled_from(["geometry", "photometric"]),
)
@example(2**63 + 1, (0, 0, 0), "geometry")
@example(2**64 - 1, (1, 2, 3), "photometric")
def test_the_reused_generator_draws_what_a_new_one_draws(seed, counter, purpose):
    """Also after draws that leave half a number over, or a part of a block."""
    reused_generator(1, 2, 3, 4).integers(4)
    reused_generator(seed, *counter, purpose).random(5)
    reused, new = reused_generator(seed, *counter, purpose), counter_generator(seed, *counter, purpose)
    assert reused.random(43).tolist() == new.random(43).tolist()
    assert reused.integers(4, size=3).tolist() == new.integers(4, size=3).tolist()
    assert reused.permutation(9).tolist() == new.permutation(9).tolist()

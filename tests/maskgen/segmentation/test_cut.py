import cv2
import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow

from hapicl.common.iou import iou
from hapicl.maskgen.segmentation.cut import (
    STEP,
    cheapest_component,
    colour_cut,
    colour_model,
    edge_weights,
    relaxed_cut,
)

NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def disc_scene() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    image = generator.normal((90, 140, 60), 6, (90, 120, 3))
    truth = cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 22, 1, -1) > 0
    image[truth] = generator.normal((200, 60, 60), 6, (int(truth.sum()), 3))
    return np.clip(image, 0, 255).astype(np.uint8), truth


def test_the_cut_finds_the_edge_and_repeats_itself() -> None:
    work, truth = disc_scene()
    rough = cv2.erode(truth.astype(np.uint8), np.ones((9, 9))) > 0
    cut = colour_cut(work, rough, 150, 15.0)
    assert iou(cut, truth) > 0.95 > iou(rough, truth)
    # anything that draws from OpenCV's generator in between
    cv2.kmeans(np.float32(work.reshape(-1, 3)), 3, None, (3, 5, 1.0), 1, cv2.KMEANS_RANDOM_CENTERS)
    np.testing.assert_array_equal(colour_cut(work, rough, 150, 15.0), cut)


def test_the_cut_is_that_of_opencv_at_the_papers_smoothness() -> None:
    work, truth = disc_scene()
    rough = cv2.erode(truth.astype(np.uint8), np.ones((9, 9))) > 0
    marks = np.where(rough, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    marks[0] = marks[:, 0] = marks[:, -1] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    cv2.grabCut(work, marks, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 1, cv2.GC_INIT_WITH_MASK)
    theirs = (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
    assert iou(colour_cut(work, rough, 300, 50.0), theirs) > 0.97


def test_the_cut_leaves_a_mask_without_pixels_to_model() -> None:
    work = np.zeros((10, 10, 3), np.uint8)
    for mask in (np.zeros((10, 10), bool), np.ones((10, 10), bool)):
        np.testing.assert_array_equal(colour_cut(work, mask, 1, 15.0), mask)


@pytest.mark.parametrize("size", [(1, 60, 3), (60, 1, 3), (8, 16, 3)])
def test_flat_and_thin_images_have_a_cut(size: tuple[int, int, int]) -> None:
    work = np.full((size[0] * 2, size[1], 3), 9, np.uint8)
    mask = np.zeros(work.shape[:2], bool)
    mask.ravel()[: mask.size // 2] = True
    assert colour_cut(work, mask, 20, 15.0).shape == mask.shape


def test_component_costs_agree_with_numpy() -> None:
    generator = np.random.default_rng(1)
    centres = np.array([[20, 30, 200], [120, 130, 90], [220, 210, 30]])
    pixels = (centres[generator.integers(0, 3, 900)] + generator.normal(0, 9, (900, 3))).astype(np.float32)
    model = colour_model(pixels)
    cost, which = cheapest_component(pixels, *model)
    assert len(model.mean) >= 3
    offset = np.einsum("kab,pkb->pka", model.whiten, pixels[:, None] - model.mean[None])
    plain = model.constant + 0.5 * (offset**2).sum(axis=2)
    np.testing.assert_allclose(cost, plain.min(axis=1), rtol=1e-4, atol=1e-4)
    assert (which == plain.argmin(axis=1)).mean() > 0.999
    for centre in centres:
        assert np.abs(model.mean - centre).max(axis=1).min() < 12


def plain_weights(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    square = np.full((4, height, width), np.nan)
    for number, (down, right) in enumerate(NEIGHBOURS):
        for y in range(height):
            for x in range(width):
                if y + down < height and 0 <= x + right < width:
                    square[number, y, x] = ((image[y, x] - image[y + down, x + right]) ** 2).sum()
    length = np.sqrt([1, 1, 0.5, 0.5])[:, None, None]
    return np.nan_to_num(length * np.exp(-square / (2 * np.nanmean(square))))


@pytest.mark.parametrize("size", [(7, 9), (1, 5), (5, 1), (1, 1)])
def test_edge_weights_agree_with_a_loop(size: tuple[int, int]) -> None:
    image = np.random.default_rng(2).normal(100, 20, (*size, 3)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = plain_weights(image) if size != (1, 1) else np.zeros((4, 1, 1))
    np.testing.assert_allclose(edge_weights(image), expected, rtol=1e-4, atol=1e-6)


def energy(unary: np.ndarray, weight: np.ndarray, mask: np.ndarray) -> float:
    height, width = mask.shape
    total = float(unary[mask].sum())
    for number, (down, right) in enumerate(NEIGHBOURS):
        for y in range(height):
            for x in range(width):
                if y + down < height and 0 <= x + right < width:
                    total += weight[number, y, x] * (mask[y, x] != mask[y + down, x + right])
    return total


def least_energy(unary: np.ndarray, weight: np.ndarray) -> float:
    """By maximum flow, exact to a thousandth."""
    height, width = unary.shape
    source, sink, scale = height * width, height * width + 1, 1e5
    edges = []
    for y in range(height):
        for x in range(width):
            node, cost = y * width + x, unary[y, x] * scale
            # foreground stays with the source: leaving it costs the gain -unary, staying costs unary
            edges.append((source, node, max(-cost, 0)))
            edges.append((node, sink, max(cost, 0)))
            for number, (down, right) in enumerate(NEIGHBOURS):
                if y + down < height and 0 <= x + right < width:
                    other = (y + down) * width + x + right
                    edges += [(node, other, weight[number, y, x] * scale)]
                    edges += [(other, node, weight[number, y, x] * scale)]
    rows, columns, capacity = (np.array(column) for column in zip(*edges, strict=True))
    graph = coo_array((capacity.astype(np.int32), (rows, columns)), shape=(sink + 1, sink + 1)).tocsr()
    flow = maximum_flow(graph, source, sink).flow_value / scale
    return float(flow + unary[unary < 0].sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_relaxed_cut_has_the_least_energy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    unary = generator.normal(0.3, 1.2, (12, 15)).astype(np.float32)
    unary[3:9, 4:12] -= 1.5
    weight = edge_weights(generator.normal(100, 20, (12, 15, 3)).astype(np.float32))
    soft = relaxed_cut(unary, weight, np.full((12, 15), 0.5, np.float32), 600, STEP)
    least = least_energy(unary, weight)
    assert least < -5
    assert least - 0.01 < energy(unary, weight, soft > 0.5) < least + 0.01 * abs(least)

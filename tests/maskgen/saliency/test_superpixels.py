import cv2
import numpy as np
import pytest
from scipy.sparse.csgraph import floyd_warshall
from skimage import data

from hapicl.maskgen.saliency.boundary import all_shortest_paths, boundary_connectivity, boundary_saliency
from hapicl.maskgen.saliency.ranking import ranking_saliency
from hapicl.maskgen.saliency.superpixels import SuperpixelGraph, slic, superpixel_graph


def plain_slic(lab: np.ndarray, step: int, compactness: float, rounds: int) -> np.ndarray:
    """Assign to the nearest centre in reach, then move the centres; pixel by pixel with NumPy."""
    height, width, _ = lab.shape
    rows, columns = max(1, height // step), max(1, width // step)
    centres = []
    for r in range(rows):
        for c in range(columns):
            y, x = int((r + 0.5) * height / rows), int((c + 0.5) * width / columns)
            centres.append([*lab[y, x], y, x])
    centre = np.array(centres, np.float64)
    reach_y, reach_x = int(height / rows) + 1, int(width / columns) + 1
    labels = np.zeros((height, width), np.int32)
    for _ in range(rounds):
        for y in range(height):
            for x in range(width):
                # whole pixels, as the kernel's windows are
                near = (np.abs(y - centre[:, 3].astype(int)) <= reach_y) & (
                    np.abs(x - centre[:, 4].astype(int)) <= reach_x
                )
                colour = ((centre[:, :3] - lab[y, x]) ** 2).sum(axis=1)
                place = (centre[:, 3] - y) ** 2 + (centre[:, 4] - x) ** 2
                distance = np.where(near, colour + (compactness / step) ** 2 * place, np.inf)
                if np.isfinite(distance).any():
                    labels[y, x] = distance.argmin()
        for k in range(len(centre)):
            ys, xs = np.nonzero(labels == k)
            if len(ys):
                centre[k] = [*lab[ys, xs].mean(axis=0), ys.mean(), xs.mean()]
    return labels


def lab_of(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


@pytest.fixture(scope="module")
def disc() -> SuperpixelGraph:
    image = np.full((96, 128, 3), (90, 140, 60), np.uint8)
    cv2.circle(image, (64, 48), 24, (220, 40, 40), -1)
    return superpixel_graph(lab_of(image), 100)


def test_slic_agrees_with_plain_slic() -> None:
    lab = lab_of(cv2.resize(data.coffee(), (40, 30), interpolation=cv2.INTER_AREA))
    ours, plain = slic(lab, 8, 20.0, 3), plain_slic(lab, 8, 20.0, 3)
    assert (ours == plain).mean() > 0.995  # float32 centres may break a tie the other way


def test_graph_holds_what_the_labels_say(disc: SuperpixelGraph) -> None:
    count = len(disc.area)
    np.testing.assert_array_equal(np.unique(disc.labels), np.arange(count))
    np.testing.assert_array_equal(disc.area, np.bincount(disc.labels.ravel()))
    expected = np.zeros((count, count), bool)
    height, width = disc.labels.shape
    for y in range(height):
        for x in range(width):
            for ny, nx in ((y + 1, x), (y, x + 1)):
                if ny < height and nx < width and disc.labels[y, x] != disc.labels[ny, nx]:
                    expected[disc.labels[y, x], disc.labels[ny, nx]] = True
    np.testing.assert_array_equal(disc.adjacent, expected | expected.T)
    assert set(np.flatnonzero(disc.sides[1])) == set(disc.labels[-1].tolist())
    assert (disc.linked >= disc.adjacent).all()


def test_shortest_paths_agree_with_scipy() -> None:
    generator = np.random.default_rng(0)
    cost = generator.uniform(1, 9, (30, 30)).astype(np.float32)
    cost = np.minimum(cost, cost.T)
    np.fill_diagonal(cost, 0)
    np.testing.assert_allclose(all_shortest_paths(cost), floyd_warshall(cost), rtol=1e-5)


def test_what_fills_the_border_is_connected_to_it(disc: SuperpixelGraph) -> None:
    connectivity = boundary_connectivity(disc)
    inside, corner = disc.labels[48, 64], disc.labels[0, 0]
    assert connectivity[corner] > 3 * connectivity[inside]


@pytest.mark.parametrize("method", [boundary_saliency, ranking_saliency])
def test_a_disc_stands_out(disc: SuperpixelGraph, method) -> None:
    saliency = method(disc)
    assert saliency[disc.labels[48, 64]] > saliency[disc.labels[5, 5]] + 0.5


@pytest.mark.parametrize("method", [boundary_saliency, ranking_saliency])
def test_an_object_cut_by_the_bottom_stands_out_more_without_the_bottom_as_background(method) -> None:
    image = np.full((96, 128, 3), (90, 140, 60), np.uint8)
    image[40:, 34:94] = (220, 40, 40)
    graph = superpixel_graph(lab_of(image), 100)
    foot, corner = graph.labels[92, 64], graph.labels[5, 5]
    gap = [float(values[foot] - values[corner]) for values in (method(graph), method(graph, bottom=0.0))]
    assert gap[1] > 0.2
    assert gap[1] > gap[0] - 1e-6

import cv2
import numpy as np
from skimage import data

from hapicl.maskgen.saliency.barrier import barrier_distance, barrier_saliency, border_contrast, minmax_scale


def plain_barrier_distance(channel: np.ndarray, passes: int) -> np.ndarray:
    """Algorithm 1 of the paper, pixel by pixel."""
    height, width = channel.shape
    distance = np.full((height, width), np.inf)
    distance[[0, -1]] = 0
    distance[:, [0, -1]] = 0
    high, low = channel.copy(), channel.copy()
    for sweep in range(passes):
        step = 1 if sweep % 2 == 0 else -1
        for y in range(height)[::step]:
            for x in range(width)[::step]:
                for ny, nx in ((y - step, x), (y, x - step)):
                    if 0 <= ny < height and 0 <= nx < width:
                        top = max(high[ny, nx], channel[y, x])
                        bottom = min(low[ny, nx], channel[y, x])
                        if top - bottom < distance[y, x]:
                            distance[y, x], high[y, x], low[y, x] = top - bottom, top, bottom
    return distance


def test_barrier_distance_agrees_with_plain_passes() -> None:
    image = cv2.resize(data.coffee(), (36, 24), interpolation=cv2.INTER_AREA).astype(np.float32)
    for passes in (1, 2, 3):
        for channel in np.moveaxis(image, 2, 0):
            expected = plain_barrier_distance(channel, passes)
            np.testing.assert_allclose(barrier_distance(channel, passes), expected, atol=1e-4)


def test_a_wall_costs_its_height() -> None:
    channel = np.zeros((15, 15), np.float32)
    channel[4:11, 4:11] = 7
    channel[6:9, 6:9] = 2
    distance = barrier_distance(channel)
    assert distance[2, 2] == 0
    assert distance[5, 5] == 7
    assert distance[7, 7] == 7  # inside the wall it is low again, but every path has crossed it


def test_border_contrast_spares_an_object_on_one_side() -> None:
    lab = np.full((60, 60, 3), 100, np.float32)
    lab[25:, 20:40] = (200, 150, 90)  # touches the bottom only
    contrast = border_contrast(lab)
    assert contrast[45, 30] > 0.9
    assert contrast[10, 10] < 0.1


def test_a_disc_stands_out() -> None:
    image = np.full((80, 100, 3), (90, 140, 60), np.uint8)
    cv2.circle(image, (50, 40), 18, (220, 40, 40), -1)
    saliency = barrier_saliency(cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32))
    assert saliency[40, 50] > 0.9
    assert saliency[5, 5] < 0.1


def test_minmax_scale_leaves_constants_at_zero() -> None:
    assert not minmax_scale(np.full((3, 4), 5, np.float32)).any()

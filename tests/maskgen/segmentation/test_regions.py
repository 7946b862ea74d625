import cv2
import numpy as np
import pytest
from skimage import data
from skimage.metrics import adapted_rand_error
from skimage.segmentation import felzenszwalb as skimage_felzenszwalb

from hapicl.maskgen.segmentation.regions import felzenszwalb, region_means


def shrunk(image: np.ndarray, long_side: int = 160) -> np.ndarray:
    factor = long_side / max(image.shape[:2])
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("scale", [50, 100, 300])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_agrees_with_scikit_image(name: str, scale: int) -> None:
    image = shrunk(getattr(data, name)())
    ours = felzenszwalb(image, scale=scale, sigma=0.8, min_size=20)
    theirs = skimage_felzenszwalb(image, scale=scale, sigma=0.8, min_size=20)
    assert adapted_rand_error(theirs, ours)[0] < 0.03


def test_agrees_with_scikit_image_on_crops_of_photographs(photographs: dict[str, np.ndarray]) -> None:
    generator, errors = np.random.default_rng(0), []
    for picture in photographs.values():
        for _ in range(3):
            height, width = (int(side * generator.uniform(0.4, 0.9)) for side in picture.shape[:2])
            top, left = (
                int(generator.integers(0, free + 1))
                for free in np.subtract(picture.shape[:2], (height, width))
            )
            image = shrunk(picture[top : top + height, left : left + width])
            ours = felzenszwalb(image, scale=100, sigma=0.8, min_size=20)
            theirs = skimage_felzenszwalb(image, scale=100, sigma=0.8, min_size=20)
            errors.append(adapted_rand_error(theirs, ours)[0])
    assert np.mean(errors) < 0.03


def test_agrees_with_scikit_image_without_smoothing() -> None:
    # whole grey levels give many ties; the order of equal edges may differ, the regions hardly
    image = shrunk(data.coffee())
    ours = felzenszwalb(image, scale=200, sigma=0, min_size=30)
    theirs = skimage_felzenszwalb(image, scale=200, sigma=0, min_size=30)
    assert adapted_rand_error(theirs, ours)[0] < 0.1


def test_flat_halves_are_two_regions() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 11:] = 200
    labels = felzenszwalb(image, scale=10, sigma=0, min_size=5)
    np.testing.assert_array_equal(labels, np.repeat((np.arange(30) >= 11)[None], 20, axis=0))


def test_small_regions_are_merged() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    labels = felzenszwalb(image, scale=1, sigma=0, min_size=25)
    assert np.bincount(labels.ravel()).min() >= 25


def test_labels_are_counted_in_raster_order() -> None:
    labels = felzenszwalb(shrunk(data.astronaut()), scale=100, min_size=20)
    _, first = np.unique(labels, return_index=True)
    assert (np.diff(first) > 0).all()


def test_region_means() -> None:
    labels = np.array([[0, 0, 1], [2, 1, 1]], np.int32)
    values = np.array([[1, 3, 0], [7, 3, 6]], np.float32)
    np.testing.assert_allclose(region_means(labels, values), [2, 3, 7])

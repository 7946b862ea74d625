"""What each test image adds to COCO's average precision: equal to faster-coco-eval, and resampled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hapicl.evaluate.detection.data import LabelledObjects, Objects
from hapicl.evaluate.detection.detect import coco_ap
from hapicl.evaluate.detection.matches import THRESHOLDS_OF, average_precision, match_detections

IMAGES, CLASSES = 7, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LabelledObjects:
    """Seven images of 100 pixels with up to five objects of three classes, some of them crowds."""
    folder = tmp_path_factory.mktemp("objects")
    generator = np.random.default_rng(0)
    images = []
    for number in range(IMAGES):
        path = folder / f"{number}.png"
        Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(path)
        count = int(generator.integers(0, 6))
        corners = generator.uniform(0, 60, (count, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(10, 38, (count, 2))], axis=1)
        images.append(
            Objects(
                image=path,
                boxes=boxes.astype(np.float32),
                labels=generator.integers(1, CLASSES + 1, count),
                difficult=generator.random(count) < 0.25,
            )
        )
    names = tuple("abc")
    return LabelledObjects(name="made up", root=folder, images=tuple(images), classes=names)


def detections(data: LabelledObjects, seed: int) -> list[dict[str, Any]]:
    """Boxes near true ones, twice, and some anywhere."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number, objects in enumerate(data.images, start=1):
        near = np.repeat(objects.boxes, 2, axis=0) + generator.normal(0, 3, (2 * len(objects.boxes), 4))
        labels = np.repeat(objects.labels, 2)
        corners = generator.uniform(0, 60, (4, 2))
        boxes = np.concatenate([near, np.concatenate([corners, corners + 20], axis=1)])
        labels = np.concatenate([labels, generator.integers(1, CLASSES + 1, 4)])
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            rows.append(
                {
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x1, y1, max(1.0, x2 - x1), max(1.0, y2 - y1)],
                    "score": float(generator.random()),
                }
            )
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_gives_cocos_numbers(data: LabelledObjects, seed: int) -> None:
    pytest.importorskip("faster_coco_eval")
    from hapicl.evaluate.detection.data import coco_truth

    rows = detections(data, seed)
    expected = coco_ap(coco_truth(data), rows, "bbox")
    matches = match_detections(rows, data)
    once = np.ones((1, IMAGES), int)
    found = {name: average_precision(matches, name, once)[0] for name in THRESHOLDS_OF}
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.05 < found["ap50"] < 0.95


def test_drawn_images_count_as_often_as_they_were_drawn(data: LabelledObjects) -> None:
    rows = detections(data, 5)
    drawn = np.array([2, 0, 1, 0, 3, 1, 0])
    # the same test set written out: image 0 twice, image 4 thrice; scores apart, for copies tie
    order = np.repeat(np.arange(IMAGES), drawn)
    copied = [
        {**row, "image_id": place + 1, "score": row["score"] + 1e-9 * place}
        for place, number in enumerate(order)
        for row in rows
        if row["image_id"] == number + 1
    ]
    written_out = replace(data, images=tuple(data.images[number] for number in order))
    matches = match_detections(copied, written_out)
    expected = average_precision(matches, "ap50", np.ones((1, len(order)), int))
    found = average_precision(match_detections(rows, data), "ap50", drawn[None])
    assert found == pytest.approx(expected, abs=0.02)  # copies of a hit reach recalls in between
    assert found != pytest.approx(
        average_precision(match_detections(rows, data), "ap50", np.ones((1, IMAGES), int)), abs=1e-3
    )


def test_a_resample_without_detections_or_objects_is_0(data: LabelledObjects, tmp_path: Path) -> None:
    nothing = match_detections([], data)
    assert average_precision(nothing, "ap", np.ones((2, IMAGES), int)).tolist() == [0.0, 0.0]
    assert average_precision(nothing, "ap", np.zeros((1, IMAGES), int)).tolist() == [0.0]

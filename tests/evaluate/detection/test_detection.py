import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hapicl.common.errors import UserError
from hapicl.evaluate.detection.data import (
    DetectionSamples,
    LabelledObjects,
    coco_objects,
    coco_truth,
    hold_out_objects,
    segment_masks,
    voc_objects,
)
from hapicl.evaluate.detection.detect import evaluate_detection, measure
from hapicl.evaluate.detection.models import AlignedRoIAlign, build_detector
from hapicl.evaluate.detection.protocols import PROTOCOLS, DetectorShape
from hapicl.evaluate.finetune import RunStopped
from hapicl.evaluate.settings import Runtime, change
from hapicl.models.backbones.build import build_backbone
from hapicl.models.weights import load_backbone

TINY = {
    "shape.short_sides": "[64]",
    "shape.long_side": "64",
    "shape.channels": "16",
    "shape.hidden": "32",
    "shape.regions": "16",
    "batch_size": "4",
    "warmup_steps": "2",
}


@pytest.fixture
def data(squares: Path) -> tuple[LabelledObjects, LabelledObjects]:
    train = voc_objects(squares, "train")
    return train, voc_objects(squares, "test", train.classes)


def rows(data: LabelledObjects, shift: float = 0.0) -> list[dict[str, object]]:
    """Every true box as a detection, moved right by `shift` pixels."""
    return [
        {
            "image_id": number,
            "category_id": int(label),
            "score": 0.9,
            "bbox": [float(x1) + shift, float(y1), float(x2 - x1), float(y2 - y1)],
        }
        for number, objects in enumerate(data.images, start=1)
        for (x1, y1, x2, y2), label in zip(objects.boxes, objects.labels, strict=True)
    ]


def test_voc_boxes_become_half_open_intervals(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    train, _ = data
    assert train.classes == ("square",)
    box = train.images[0].boxes[0]
    assert (box[2] - box[0], box[3] - box[1]) == (28, 28)
    pixels = np.asarray(Image.open(train.images[0].image)).astype(int)
    x1, y1, x2, y2 = box.astype(int)
    assert pixels[y1:y2, x1:x2, 0].min() > 150
    assert pixels[y1 - 2, x1 - 2, 0] < 100


def test_perfect_detections_score_one(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    metrics, per_class = measure(rows(data[1]), None, data[1])
    assert metrics == pytest.approx(dict.fromkeys(metrics, 1.0))
    assert set(metrics) == {"ap", "ap50", "ap75", "voc_ap", "voc_ap50", "voc_ap75"}
    assert per_class == {"square": 1.0}


def test_shifted_detections_by_hand(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    # 4 of 28 pixels to the right: IoU 24 / 32 = .75 passes .50 to .75, which is 6 of 10 thresholds
    metrics, _ = measure(rows(data[1], shift=4.0), None, data[1])
    assert metrics == pytest.approx(
        {"ap": 0.6, "ap50": 1.0, "ap75": 1.0, "voc_ap": 0.6, "voc_ap50": 1.0, "voc_ap75": 1.0}
    )


def test_no_detection_scores_zero(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    metrics, _ = measure([], None, data[1])
    assert metrics == dict.fromkeys(metrics, 0.0)


def test_half_found_covers_half_the_recall(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    # COCO's 101 points: 51 of 101; VOC's 11: 6 of 11
    metrics, _ = measure(rows(data[1])[:2], None, data[1])
    assert metrics["ap50"] == pytest.approx(51 / 101)
    assert metrics["voc_ap50"] == pytest.approx(6 / 11)


def test_flips_move_image_and_boxes_together(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    samples = DetectionSamples(data[0], train=True)
    seen = set()
    for draw in range(8):
        image, target = samples.sample(0, np.random.default_rng(draw))
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        assert image[0, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 150
        seen.add(x1)
    assert len(seen) == 2


def test_voc_mistakes_are_named(tmp_path: Path, squares: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*val\.txt"):
        voc_objects(squares, "val")
    with pytest.raises(UserError, match="'square' is none of circle"):
        voc_objects(squares, "test", ("circle",))
    for folder in ("ImageSets/Main", "Annotations"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    for content, message in (
        ("<annotation><object>", "is no XML"),
        ("<annotation><object><name>a</name></object></annotation>", "lacks a side"),
        (
            "<annotation><object><name>a</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>2</xmax>"
            "<ymax>9</ymax></bndbox></object></annotation>",
            "is empty",
        ),
    ):
        (tmp_path / "Annotations/a.xml").write_text(content)
        with pytest.raises(UserError, match=message):
            voc_objects(tmp_path, "train")


@pytest.fixture
def coco(tmp_path: Path, squares: Path) -> Path:
    """The squares as COCO JSON with polygon masks."""
    train = voc_objects(squares, "train")
    content = coco_truth(train)
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (tmp_path / "squares.json").write_text(json.dumps(content))
    return tmp_path / "squares.json"


def test_coco_json_gives_boxes_and_masks(coco: Path, squares: Path) -> None:
    data = coco_objects(squares / "JPEGImages", coco)
    reference = voc_objects(squares, "train")
    assert data.masks
    assert not reference.masks
    assert len(data) == 12
    for ours, theirs in zip(data.images, reference.images, strict=True):
        np.testing.assert_allclose(ours.boxes, theirs.boxes)
    _, target = DetectionSamples(data, train=True).sample(0, np.random.default_rng(0))
    x1, y1, x2, y2 = target["boxes"][0].int().tolist()
    mask = target["masks"][0]
    assert mask.sum() == 28 * 28
    assert mask[y1:y2, x1:x2].all()


def test_perfect_masks_score_one(coco: Path, squares: Path) -> None:
    from faster_coco_eval.core import mask as coco_mask

    data = coco_objects(squares / "JPEGImages", coco)
    found = []
    for row, objects in zip(rows(data), data.images, strict=True):
        assert objects.segments is not None
        pixels = segment_masks(objects.segments, 64, 64)[0]
        run = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        found.append({**row, "segmentation": run})
    metrics, _ = measure(rows(data), found, data)
    assert metrics["mask_ap"] == pytest.approx(1.0)
    assert metrics["ap"] == pytest.approx(1.0)


def test_run_length_masks(coco: Path) -> None:
    # COCO counts down the columns: 2 zeros, 2 ones, 2 zeros
    masks = segment_masks([{"size": [2, 3], "counts": [2, 2, 2]}], 2, 3)
    assert masks[0].tolist() == [[False, True, False], [False, True, False]]


def test_coco_mistakes_are_named(tmp_path: Path, coco: Path, squares: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        coco_objects(squares, tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        coco_objects(squares, tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="lacks the list 'annotations'"):
        coco_objects(squares, tmp_path / "bad.json")
    with pytest.raises(UserError, match="but there is no"):
        coco_objects(tmp_path, coco)


def test_hold_out_keeps_all(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    train, test = hold_out_objects(data[0], 0.25)
    assert (len(train), len(test)) == (9, 3)
    assert {str(o.image) for o in (*train.images, *test.images)} == {str(o.image) for o in data[0].images}


def pool(maps: dict[str, torch.Tensor], boxes: list[torch.Tensor], *, side: int, size: int) -> torch.Tensor:
    """Pool from maps of one image that was padded to `side`, whatever its own size."""
    trunk = torch.nn.Identity()
    align = AlignedRoIAlign(list(maps), size, trunk)
    trunk(torch.zeros(1, 3, side, side))
    pooled: torch.Tensor = align(maps, boxes, [(7, 9)])
    return pooled


def test_aligned_pooling_of_a_linear_map_gives_cell_centres() -> None:
    # a map that holds its own x coordinate, in pixels of the image: pooling must return the cells' centres
    scale = 4
    ramp = (torch.arange(16.0) + 0.5) * scale
    maps = {"0": ramp.expand(1, 1, 16, 16).contiguous()}
    pooled = pool(maps, [torch.tensor([[8.0, 8.0, 40.0, 40.0]])], side=64, size=2)
    torch.testing.assert_close(pooled[0, 0, 0], torch.tensor([16.0, 32.0]))


def test_regions_go_to_the_level_of_their_size() -> None:
    sides = (64, 32, 16, 8)
    maps = {str(level): torch.full((1, 1, side, side), float(level)) for level, side in enumerate(sides)}
    boxes = [torch.tensor([[0.0, 0, size, size] for size in (50, 120, 250, 256)])]
    pooled = pool(maps, boxes, side=256, size=1)
    # floor(4 + log2(side / 224)): 1 (cut to 2), 3, 4, 4
    assert pooled.flatten().tolist() == [0.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(("head", "masks"), [("c4", False), ("2fc", True), ("4conv1fc", True)])
def test_every_detector_trains_and_predicts(head: str, masks: bool) -> None:
    shape = DetectorShape(
        head=head,
        short_sides=(64,),
        long_side=64,
        anchors=(8, 16, 32, 64, 128),
        regions=8,
        channels=16,
        hidden=16,
    )
    detector = build_detector(build_backbone("resnet18", image_size=64), shape, classes=2, masks=masks)
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([2])}
    if masks:
        full = [torch.zeros(1, *image.shape[1:], dtype=torch.uint8) for image in images]
        losses = detector(images, [{**target, "masks": mask} for mask in full])
    else:
        losses = detector(images, [target, target])
    assert ("loss_mask" in losses) == masks
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    trained = [name for name, value in detector.named_parameters() if value.grad is None]
    assert not trained, trained
    detector.rpn._post_nms_top_n["testing"] = 20  # a thousand regions take a test's time, not its point
    with torch.inference_mode():
        outputs = detector.eval()(images)
    assert set(outputs[0]) >= {"boxes", "labels", "scores"}


def test_detectors_need_a_resnet() -> None:
    vit = load_backbone("random", arch="vit_tiny_patch16_224", image_size=64)[0]
    with pytest.raises(UserError, match=r"needs a ResNet.* takes --protocol detect-small-vit"):
        build_detector(vit, PROTOCOLS["detect-small"].shape, classes=1, masks=False)


def test_mask_protocols_refuse_data_without_masks(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    backbone = build_backbone("resnet18", image_size=64)
    with pytest.raises(UserError, match="has no instance masks"):
        evaluate_detection(backbone, *data, PROTOCOLS["coco-fpn-2fc"], seed=0, runtime=Runtime())


@pytest.mark.slow
def test_a_small_detector_learns_squares(data: tuple[LabelledObjects, LabelledObjects]) -> None:
    protocol = change(PROTOCOLS["detect-small"], {**TINY, "steps": "120", "lr": "0.02"})
    backbone = load_backbone("random", arch="resnet18", stem="imagenet")[0]
    outcome = evaluate_detection(backbone, *data, protocol, seed=0, runtime=Runtime())
    assert outcome.metrics["ap50"] > 0.6
    assert len(outcome.pictures) == 4


def test_detection_resumes_bit_for_bit(data: tuple[LabelledObjects, LabelledObjects], tmp_path: Path) -> None:
    protocol = change(PROTOCOLS["detect-small"], {**TINY, "steps": "5"})

    def run(folder: str, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        backbone = load_backbone("random", arch="resnet18", stem="imagenet")[0]
        runtime = Runtime(folder=tmp_path / folder, stop_after=stop_after)
        evaluate_detection(backbone, *data, protocol, seed=1, runtime=runtime)
        return dict(torch.load(tmp_path / folder / "seed1/last.pt", weights_only=True)["module"])

    whole = run("whole")
    with pytest.raises(RunStopped):
        run("parts", stop_after=3)
    torch.manual_seed(4321)
    resumed = run("parts")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())

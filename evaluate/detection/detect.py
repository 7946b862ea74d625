"""`evaluate detect`: what a backbone is worth for detection and instance segmentation, fine-tuned.

`voc-c4-moco`: Faster R-CNN R50-C4, BatchNorm after res5, 24k iterations of 16 images, VOC's 11-point AP
averaged over IoU .50 to .95 (MoCo, arXiv 1911.05722, section 4.2; the mean of 5 runs is given: --runs 5).
`coco-fpn-2fc`, `coco-fpn-4conv1fc`: Mask R-CNN on a pyramid, the 1x schedule (90k iterations of 16 images),
COCO's AP; the two heads give numbers that are not comparable.
`detect-small`: the 2fc model at small input for few iterations, on a folder in VOC or COCO format.
`coco-vitdet`: ViTDet on a plain ViT (Li et al., arXiv 2203.16527, by detectron2's mask_rcnn_vitdet_b_100ep),
as published and not run by us; `detect-small-vit`: the same detector, narrower, at small input. Not alike:
positions are resampled to the images' grid before training (detectron2 keeps those of pretraining, 14 x 14,
and resamples them each time), biases are not decayed, jittered images are padded with the mean colour.

torchvision's detectors stand in for detectron2's. Made alike: RoIAlign's half-pixel correction and adaptive
sampling, number of boxes before and after suppression, all layers trained, BatchNorm trained (also in the
pyramid and heads of 4conv1fc). Not alike, so numbers may differ a little: smooth L1 has its corner at 1/9
instead of 0; BatchNorm tests with its running statistics (no PreciseBN); VOC's difficult objects and COCO's
crowds are left out of training, where detectron2 trains on the difficult ones; the losses are means over the
whole batch, where detectron2 takes the mean over its processes' means. Scores above .05 count, at most 100
an image. BatchNorm normalises over the whole batch, synchronised where several processes share it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...common.errors import UserError
from ...engine.optimizers import OptimizerSettings
from ...engine.schedule import ScheduleSettings
from ...models.backbones.base import Backbone
from ...models.stage_rates import fine_tuning_groups
from ..batches import TaskBatches, ordered_batches
from ..finetune import Curve, train
from ..pictures import detection_picture
from ..processes import first_alone, gather_to_first, share, together
from ..result import Outcome
from ..settings import Runtime, parameters
from .data import DetectionSamples, LabelledObjects, coco_truth, collate_lists
from .jitter import large_scale_jitter
from .matches import match_detections
from .models import DetectionTask, build_detector
from .protocols import DetectionProtocol, ViTDetProtocol
from .vitdet import build_vitdet
from .voc_metric import Detections, Truth, voc_mean_ap

PICTURES = 6
TEST_BATCH = 8  # images


@dataclass
class _Found:
    """Detections of a process's test images, as COCO's and VOC's evaluators take them."""

    boxes: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)


def evaluate_detection(
    backbone: Backbone,
    train_data: LabelledObjects,
    test_data: LabelledObjects,
    protocol: DetectionProtocol | ViTDetProtocol,
    *,
    seed: int,
    runtime: Runtime,
    identity: dict[str, Any] | None = None,
) -> Outcome:
    """Fine-tune a detector on `train_data`, measure on `test_data`.

    Args:
        backbone: fine-tuned in place.
        train_data, test_data: with the same classes.
        protocol: one of `PROTOCOLS`, perhaps changed.
        seed: of the order, the flips, the new layers and the sampling of regions.
        runtime: device, workers, run folder.
        identity: JSON-able, what the run folder must be of; part of the checkpoint.

    Returns:
        COCO's `ap`, `ap50`, `ap75` (with masks also `mask_ap`, ...) and VOC's `voc_ap`, `voc_ap50`,
        `voc_ap75`, all in [0, 1]; `voc_ap` per class; the loss curve; pictures.

    Raises:
        UserError: if the protocol needs masks and the data has none, no test object counts, or the backbone
            does not fit the protocol.
    """
    masks = train_data.masks and test_data.masks and protocol.shape.has_pyramid
    if protocol.masks and not masks:
        raise UserError(
            f"{train_data.name} has no instance masks; this protocol needs COCO JSON with segmentations "
            "(voc-c4-moco and detect-small do without)"
        )
    if all(objects.difficult.all() for objects in test_data.images):
        raise UserError(f"{test_data.name}: no test image has an object that counts; name another split")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = _build(backbone, protocol, classes=len(train_data.classes), masks=masks)
    batches = TaskBatches(
        training_samples(train_data, protocol),
        batch_size=protocol.batch_size,
        seed=seed,
        workers=runtime.workers,
        device=runtime.device,
        collate=collate_lists,
    )
    curve = _train(detector, backbone, batches, protocol, seed, runtime, {"masks": masks, **(identity or {})})
    parts = gather_to_first(_predict(detector.eval(), test_data, runtime, masks=masks))

    def count() -> Outcome:
        boxes = [row for part in parts for row in part.boxes]
        outlines = [row for part in parts for row in part.masks] if masks else None
        metrics, per_class = measure(boxes, outlines, test_data)
        return Outcome(
            metrics=metrics,
            per_class=per_class,
            curves={"loss": curve},
            pictures=[picture for part in parts for picture in part.pictures],
            per_image=match_detections(boxes, test_data),
        )

    return first_alone(count)


def _build(
    backbone: Backbone, protocol: DetectionProtocol | ViTDetProtocol, *, classes: int, masks: bool
) -> nn.Module:
    """The protocol's detector on a backbone."""
    if isinstance(protocol, ViTDetProtocol):
        return build_vitdet(
            backbone, protocol.shape, drop_path=protocol.drop_path, classes=classes, masks=masks
        )
    return build_detector(backbone, protocol.shape, classes=classes, masks=masks)


def training_samples(data: LabelledObjects, protocol: DetectionProtocol | ViTDetProtocol) -> DetectionSamples:
    """Training images as the protocol augments them."""
    augment = None
    if isinstance(protocol, ViTDetProtocol) and protocol.jitter is not None:
        augment = partial(large_scale_jitter, side=protocol.shape.long_side, scale=protocol.jitter)
    return DetectionSamples(data, train=True, augment=augment)


def _train(
    detector: nn.Module,
    backbone: Backbone,
    batches: TaskBatches,
    protocol: DetectionProtocol | ViTDetProtocol,
    seed: int,
    runtime: Runtime,
    identity: dict[str, Any],
) -> Curve:
    """Fine-tune the detector; give the loss curve."""
    return train(
        DetectionTask(detector, seed=seed),
        batches,
        steps=protocol.steps,
        optimizer=OptimizerSettings(
            name="adamw" if isinstance(protocol, ViTDetProtocol) else "sgd",
            base_lr=protocol.lr * 256 / protocol.batch_size,
            momentum=0.9,  # of SGD
            weight_decay=protocol.weight_decay,
        ),
        schedule=ScheduleSettings(
            name="steps",
            milestones=protocol.milestones,
            warmup_epochs=protocol.warmup_steps / batches.steps_per_epoch,
        ),
        seed=seed,
        runtime=runtime,
        config={"protocol": parameters(protocol), "seed": seed, **identity},
        clip_norm=protocol.clip_norm,
        groups=(
            fine_tuning_groups(detector, backbone, protocol.layer_decay)
            if isinstance(protocol, ViTDetProtocol)
            else None
        ),
    )


@torch.no_grad()
def _predict(detector: nn.Module, data: LabelledObjects, runtime: Runtime, *, masks: bool) -> _Found:
    """Run the detector over this process's test images."""
    found = _Found()
    shown = {round(position) for position in np.linspace(0, len(data) - 1, min(PICTURES, len(data)))}
    samples = DetectionSamples(data, train=False)
    mine = share(len(samples), TEST_BATCH)
    number = mine.start
    with together(), runtime.progress("test images", len(mine)) as advance:
        for images, targets in ordered_batches(
            samples,
            batch_size=TEST_BATCH,
            indices=mine,
            workers=runtime.workers,
            device=runtime.device,
            collate=collate_lists,
        ):
            outputs = detector([image.float() / 255 for image in images])
            for image, target, output in zip(images, targets, outputs, strict=True):
                output = {name: value.cpu() for name, value in output.items()}
                pixels = output["masks"][:, 0] > 0.5 if masks else None
                _collect(found, number + 1, output, pixels)
                if number in shown:
                    picture = detection_picture(
                        image,
                        target["boxes"].cpu().numpy(),
                        output["boxes"].numpy(),
                        output["scores"].numpy(),
                        None if pixels is None else pixels.numpy(),
                    )
                    found.pictures.append((data.images[number].image.name, picture))
                number += 1
            advance(len(images))
    return found


def _collect(found: _Found, image_id: int, output: dict[str, Tensor], pixels: Tensor | None) -> None:
    """Append one image's detections in COCO's result format."""
    for index, (box, label, score) in enumerate(
        zip(output["boxes"].tolist(), output["labels"].tolist(), output["scores"].tolist(), strict=True)
    ):
        x1, y1, x2, y2 = box
        entry = {"image_id": image_id, "category_id": label, "score": score}
        found.boxes.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]})
        if pixels is not None:
            from faster_coco_eval.core import mask as coco_mask

            run = coco_mask.encode(np.asfortranarray(pixels[index].numpy().astype(np.uint8)))
            found.masks.append({**entry, "segmentation": run})


def measure(
    boxes: list[dict[str, Any]], masks: list[dict[str, Any]] | None, data: LabelledObjects
) -> tuple[dict[str, float], dict[str, float | None]]:
    """COCO's and VOC's numbers of detections in COCO's result format (image i has id i + 1).

    Returns:
        The metrics, and VOC's AP (over IoU .50 to .95) per class.
    """
    truth = coco_truth(data)
    metrics = coco_ap(truth, boxes, "bbox")
    if masks is not None:
        metrics |= {f"mask_{name}": value for name, value in coco_ap(truth, masks, "segm").items()}
    summary, per_class = voc_mean_ap(voc_truths(data), _by_class(boxes, data.classes))
    return metrics | {f"voc_{name}": value for name, value in summary.items()}, per_class


def coco_ap(truth: dict[str, Any], detections: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """COCO's `ap` (IoU .50 to .95), `ap50` and `ap75`, by faster-coco-eval.

    Args:
        truth: COCO's ground truth dictionary.
        detections: COCO's result rows.
        kind: bbox or segm.

    Raises:
        UserError: if faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise UserError("COCO's AP needs faster-coco-eval: pip install 'hapicl[eval]'") from error
    reference = COCO(truth)
    evaluator = COCOeval_faster(
        reference, reference.loadRes(detections), kind, print_function=lambda *_: None
    )
    evaluator.run()
    # -1 stands for "no true box"; that cannot be here, the data was checked
    return {name: float(evaluator.stats[index]) for index, name in enumerate(("ap", "ap50", "ap75"))}


def voc_truths(data: LabelledObjects) -> dict[str, dict[str, Truth]]:
    """True boxes by class and image number."""
    table: dict[str, dict[str, Truth]] = {name: {} for name in data.classes}
    for number, objects in enumerate(data.images, start=1):
        for label, name in enumerate(data.classes, start=1):
            here = objects.labels == label
            if here.any():
                table[name][str(number)] = Truth(objects.boxes[here], objects.difficult[here])
    return table


def _by_class(boxes: list[dict[str, Any]], classes: tuple[str, ...]) -> dict[str, Detections]:
    """COCO's result rows as VOC's evaluator takes them."""
    table = {}
    for label, name in enumerate(classes, start=1):
        rows = [row for row in boxes if row["category_id"] == label]
        corners = np.asarray([row["bbox"] for row in rows], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        scores = np.asarray([row["score"] for row in rows], float)
        table[name] = Detections([str(row["image_id"]) for row in rows], scores, corners)
    return table

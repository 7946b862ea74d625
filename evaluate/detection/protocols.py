"""Parameters of the detection protocols, named by origin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...common.config import Count, CountOrZero, NotNegative, Positive, Settings, Width
from ...pretrain.config.settings import ImageSize
from ..settings import Between

PYRAMID_LEVELS = 5  # res2 to res5, and one pooled from res5
MOCO_SIDES = tuple(range(480, 801, 32))  # detectron2's R_50_C4 for VOC
COCO_SIDES = (640, 672, 704, 736, 768, 800)

Sides = Annotated[tuple[ImageSize, ...], Field(min_length=1)]


class DetectorShape(Settings):
    """Which detector, and its sizes."""

    head: Literal["c4", "2fc", "4conv1fc"]
    short_sides: Sides  # one is drawn per batch in training, the last serves in tests
    long_side: Annotated[int, Field(ge=1, le=16_384)]  # pixels
    anchors: Sides = (32, 64, 128, 256, 512)  # side at ratio 1, pixels of the resized image
    regions: Count = 512  # sampled per image for the head's loss
    channels: Width = 256  # of the pyramid (Lin et al., CVPR 2017; detectron2's width)
    hidden: Width = 1024  # of the box head's linear layers

    @model_validator(mode="after")
    def _check_anchors(self) -> DetectorShape:
        """Refuse a pyramid with other anchors than levels."""
        if self.head != "c4" and len(self.anchors) != PYRAMID_LEVELS:
            raise ValueError(f"anchors must hold {PYRAMID_LEVELS} sides, one for each level of the pyramid")
        return self


class DetectionProtocol(Settings):
    """Parameters of a detection protocol."""

    shape: DetectorShape
    steps: CountOrZero
    batch_size: Count
    lr: Positive  # at this batch size
    milestones: tuple[Between, ...]  # fractions of the steps at which the rate is divided by 10
    warmup_steps: CountOrZero
    headline: Literal["ap", "ap50", "ap75", "voc_ap", "voc_ap50", "voc_ap75"]
    weight_decay: NotNegative = 1e-4
    clip_norm: Positive | None = None
    masks: bool = False  # instance masks are needed; detect-small uses them where they are


# detectron2's 1x schedule of Mask R-CNN on a pyramid
_COCO_1X = DetectionProtocol(
    shape=DetectorShape(head="2fc", short_sides=COCO_SIDES, long_side=1333),
    steps=90_000,
    batch_size=16,
    lr=0.02,
    milestones=(60 / 90, 80 / 90),
    warmup_steps=1000,
    headline="ap",
    masks=True,
)

PROTOCOLS = {
    "voc-c4-moco": DetectionProtocol(
        shape=DetectorShape(head="c4", short_sides=MOCO_SIDES, long_side=1333),
        steps=24_000,
        batch_size=16,
        lr=0.02,
        milestones=(18 / 24, 22 / 24),
        warmup_steps=100,
        headline="voc_ap",
    ),
    "coco-fpn-2fc": _COCO_1X,
    "coco-fpn-4conv1fc": _COCO_1X.replace(shape=_COCO_1X.shape.replace(head="4conv1fc")),
    # our own choice; AP at IoU .5 is the least noisy number at this scale
    "detect-small": DetectionProtocol(
        shape=DetectorShape(
            head="2fc", short_sides=(192,), long_side=320, anchors=(16, 32, 64, 128, 256), regions=128
        ),
        steps=600,
        batch_size=8,
        lr=0.01,
        milestones=(0.7, 0.9),
        warmup_steps=50,
        headline="ap50",
        clip_norm=10.0,
    ),
}

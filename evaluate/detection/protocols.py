"""Parameters of the detection protocols, named by origin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ...common.config import Count, CountOrZero, NotNegative, Positive, Settings, Width, in_order
from ...pretrain.config.settings import ImageSize
from ..settings import Between

PYRAMID_LEVELS = 5  # res2 to res5, and one pooled from res5
MOCO_SIDES = tuple(range(480, 801, 32))  # detectron2's R_50_C4 for VOC
COCO_SIDES = (640, 672, 704, 736, 768, 800)

Jitter = Annotated[float, Field(gt=0, le=10)]
Sides = Annotated[tuple[ImageSize, ...], Field(min_length=1)]


class DetectorSizes(Settings):
    """Sizes that every detector has."""

    short_sides: Sides  # one is drawn per batch in training, the last serves in tests
    long_side: Annotated[int, Field(ge=1, le=16_384)]  # pixels
    anchors: Sides = (32, 64, 128, 256, 512)  # side at ratio 1, pixels of the resized image
    regions: Count = 512  # sampled per image for the head's loss
    channels: Width = 256  # of the pyramid (Lin et al., CVPR 2017; detectron2's width)
    hidden: Width = 1024  # of the box head's linear layers

    @property
    def has_pyramid(self) -> bool:
        """Whether the detector reads a pyramid, with one size of anchor on each level."""
        return True

    @model_validator(mode="after")
    def _check_anchors(self) -> DetectorSizes:
        """Refuse a pyramid with other anchors than levels."""
        if self.has_pyramid and len(self.anchors) != PYRAMID_LEVELS:
            raise ValueError(f"anchors must hold {PYRAMID_LEVELS} sides, one for each level of the pyramid")
        return self


class DetectorShape(DetectorSizes):
    """Which detector on a ResNet or another pyramid of maps, and its sizes."""

    head: Literal["c4", "2fc", "4conv1fc"]

    @property
    def has_pyramid(self) -> bool:
        """All but the C4 detector."""
        return self.head != "c4"


class ViTDetShape(DetectorSizes):
    """Sizes of a detector on a plain ViT; images are padded to squares of `long_side`."""

    window: Count = 14  # patches per side within which most blocks attend
    global_blocks: Count = 4  # evenly spaced ones that attend to the whole image, the last block among them


class TrainingProtocol(Settings):
    """What the training of every detector has."""

    steps: CountOrZero
    batch_size: Count
    lr: Positive  # at this batch size
    milestones: tuple[Between, ...]  # fractions of the steps at which the rate is divided by 10
    warmup_steps: CountOrZero
    headline: Literal["ap", "ap50", "ap75", "voc_ap", "voc_ap50", "voc_ap75"]
    weight_decay: NotNegative = 1e-4
    clip_norm: Positive | None = None
    masks: bool = False  # instance masks are needed; detect-small uses them where they are


class DetectionProtocol(TrainingProtocol):
    """Parameters of a detector on a pyramid or a ResNet, trained by SGD."""

    shape: DetectorShape


class ViTDetProtocol(TrainingProtocol):
    """Parameters of ViTDet, trained by AdamW at rates that fall towards the image."""

    shape: ViTDetShape
    layer_decay: Annotated[float, Field(gt=0, le=1)]  # of the rate, from block to block
    drop_path: Annotated[float, Field(ge=0, lt=1)]  # at the last block
    # large-scale jitter: least and most of the side to which an image is resized before it is cropped and
    # padded to `long_side`, as fractions of that; None: images are flipped only
    jitter: Annotated[tuple[Jitter, Jitter], AfterValidator(in_order)] | None = None


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

PROTOCOLS: dict[str, DetectionProtocol | ViTDetProtocol] = {
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
    # the numbers of detectron2's projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py and
    # configs/common/models/mask_rcnn_vitdet.py: ViT-B, 100 epochs of COCO. Larger ViTs have layer_decay .8
    # and .9, drop_path .4 and .5 (arXiv 2203.16527, appendix). Not run by us
    "coco-vitdet": ViTDetProtocol(
        shape=ViTDetShape(short_sides=(1024,), long_side=1024),
        steps=184_375,
        batch_size=64,
        lr=1e-4,
        weight_decay=0.1,
        milestones=(163_889 / 184_375, 177_546 / 184_375),
        warmup_steps=250,
        layer_decay=0.7,
        drop_path=0.1,
        jitter=(0.1, 2.0),
        headline="ap",
        masks=True,
    ),
    # our own choice: detect-small's work for a ViT, whose heads are ViTDet's, narrower
    "detect-small-vit": ViTDetProtocol(
        shape=ViTDetShape(
            short_sides=(256,),
            long_side=256,
            anchors=(16, 32, 64, 128, 256),
            regions=128,
            channels=64,
            hidden=256,
            window=8,
        ),
        steps=600,
        batch_size=8,
        lr=5e-4,
        weight_decay=0.1,
        milestones=(0.7, 0.9),
        warmup_steps=50,
        layer_decay=0.8,
        drop_path=0.1,
        headline="ap50",
    ),
}

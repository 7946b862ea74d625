"""Rows, columns and scales of the claims table; `claims.py` runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hapicl.data.images.folder import find_images
from hapicl.evaluate.classification.run import knn_task, linear_task
from hapicl.evaluate.detection.run import DetectionData, detect_task
from hapicl.evaluate.measure import Evaluated, Task, measure
from hapicl.evaluate.segmentation.run import SegmentationData, segment_task
from hapicl.evaluate.settings import Request

# most telling first
ORDER = (
    "moco_v2",
    "hapicl_m",
    "hapicl_m_redraws_only",
    "densecl",
    "simclr",
    "hapicl_s",
    "byol",
    "harl",
    "pirl",
    "npid",
    "jigsaw",
    "rotation",
    "hapicl",
)
# rows that are a method with a setting changed: its name and `--set`. HAPiCL-M without its pixel term is
# MoCo v2, symmetric, on crops redrawn by foreground: what the redraws alone do
CONTROLS = {"hapicl_m_redraws_only": ("hapicl_m", "config.pixel_weight=0")}
VIT = ("moco_v3", "mae", "siameseim", "hapicl_vit")
# the rows of random weights: what `hapicl evaluate` takes for them, and their backbone; trained rows are held
# against `random`, whose BatchNorm statistics come from the training images; a ViT has no BatchNorm, so its
# one row is both forms
RANDOM_ROWS = {
    "random": ("random", "resnet18"),
    "random-untouched": ("random-untouched", "resnet18"),
    "random_vit": ("random", "vit_tiny_patch16_224"),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How long and how large everything is."""

    image_size: int
    pretrain: tuple[str, ...]  # options of `hapicl pretrain` besides recipe, data, seed and folder
    vit_stem: str
    resnet_stem: str
    limit: int | None  # pretraining images
    per_class: tuple[int, int] | None  # Caltech-101: training and test images a class; None: all
    probe: dict[str, str]
    foreground: dict[str, str]
    detect_size: int
    detect: dict[str, str]
    fcn: dict[str, str] | None
    linear: bool


SCALES = {
    # a few CPU minutes a row: that everything runs, nothing more
    "smoke": Scale(
        image_size=64,
        pretrain=("--steps", "40", "--batch-size", "16", "--image-size", "64"),
        vit_stem="patch8",
        resnet_stem="no_pool",
        limit=320,
        per_class=(8, 4),
        probe={"height": "72", "width": "96", "steps": "200"},
        foreground={"height": "96", "width": "96", "steps": "150", "batch_size": "16"},
        detect_size=64,
        detect={
            "shape.channels": "32",
            "shape.hidden": "128",
            "shape.regions": "32",
            "batch_size": "4",
            "steps": "50",
            "warmup_steps": "10",
        },
        fcn=None,
        linear=False,
    ),
    # one GPU, the recipes' own 200 epochs
    "small": Scale(
        image_size=128,
        pretrain=("--image-size", "128"),
        vit_stem="patch16",
        resnet_stem="imagenet",
        limit=None,
        per_class=None,
        probe={"height": "240", "width": "320", "steps": "2000"},
        foreground={"height": "224", "width": "224", "steps": "1000"},
        detect_size=192,
        detect={"steps": "1500"},
        fcn={"crop": "224", "steps": "2000", "batch_size": "16"},
        linear=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A protocol on a data set: its title, what it needs on disk, how its task is made."""

    title: str
    needs: tuple[str, ...]
    protocol: str
    task: Callable[[Request], Task]
    changes: dict[str, str] = field(default_factory=dict)
    image_size: int | None = None
    for_vit: bool = True

    def run(self, request: Request) -> Evaluated:
        """Measure the request's weights by this column."""
        changed = request.replace(protocol=self.protocol, changes=self.changes, image_size=self.image_size)
        return measure(changed, self.task(changed))


def columns(scale: Scale, data: Path, work: Path) -> list[Column]:
    """All columns of a scale, whether or not their data is there."""
    camvid, raccoon = data / "seg_camvid_trainval", data / "det_raccoon"
    city = SegmentationData(
        images=camvid / "train",
        labels=camvid / "trainannot",
        test_images=camvid / "val",
        test_labels=camvid / "valannot",
        void=11,
        classes=11,
    )
    found = [
        Column(
            title="seg-probe CamVid mIoU",
            needs=("seg_camvid_trainval",),
            protocol="seg-probe",
            changes=scale.probe,
            task=partial(segment_task, where=city),
        )
    ]
    for name, title in (("fg_human", "people"), ("fg_bag_even", "bags")):
        masks = SegmentationData(
            images=data / name / "images", labels=data / name / "masks", binary=True, classes=2
        )
        found.append(
            Column(
                title=f"seg-probe {title} mIoU",
                needs=(name,),
                protocol="seg-probe",
                changes=scale.foreground,
                task=partial(segment_task, where=masks),
            )
        )
    found.append(
        Column(
            title="detect-small raccoon AP50",
            needs=("det_raccoon",),
            protocol="detect-small",
            changes=scale.detect,
            image_size=scale.detect_size,
            task=partial(detect_task, where=DetectionData(voc=raccoon, splits=("train", "test"))),
            for_vit=False,
        )
    )
    if scale.fcn is not None:
        found.append(
            Column(
                title="seg-moco-fcn16 CamVid mIoU",
                needs=("seg_camvid_trainval",),
                protocol="seg-moco-fcn16",
                changes=scale.fcn,
                task=partial(segment_task, where=city),
                for_vit=False,
            )
        )
    return found + classification_columns(scale, data, work)


def classification_columns(scale: Scale, data: Path, work: Path) -> list[Column]:
    """KNN and the cached linear probe on Caltech-101, or on the first images of each class."""
    needs = ("caltech101_train", "caltech101_test")

    def folders() -> dict[str, Path]:
        counts = scale.per_class or (None, None)
        places = [
            data / name if count is None else first_images(data / name, work / f"{name}_first{count}", count)
            for name, count in zip(needs, counts, strict=True)
        ]
        return dict(zip(("train", "test"), places, strict=True))

    found = [
        Column(
            title="knn-dino Caltech-101 top 1",
            needs=needs,
            protocol="knn-dino",
            image_size=scale.image_size,
            task=lambda request: knn_task(request, **folders()),
        )
    ]
    if scale.linear:
        found.append(
            Column(
                title="linear-moco-cached Caltech-101 top 1",
                needs=needs,
                protocol="linear-moco-cached",
                image_size=scale.image_size,
                task=lambda request: linear_task(request, **folders()),
            )
        )
    return found


def first_images(source: Path, target: Path, count: int) -> Path:
    """A folder of links to the first `count` images of each class."""
    seen: dict[str, int] = {}
    for path in find_images(source):
        name = path.split("/")[0]
        seen[name] = seen.get(name, 0) + 1
        link = target / path
        if seen[name] <= count and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((source / path).resolve())
    return target

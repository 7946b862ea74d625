"""Rows, columns and scales of the claims table; `claims.py` runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hapicl.data.images.folder import find_images
from hapicl.evaluate.classification.run import run_knn, run_linear
from hapicl.evaluate.detection.run import DetectionData, run_detect
from hapicl.evaluate.measure import Evaluated
from hapicl.evaluate.segmentation.run import SegmentationData, run_segment
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


@dataclass(frozen=True)
class Column:
    """A protocol on a data set: its title, what it needs on disk, how it is run."""

    title: str
    needs: tuple[str, ...]
    run: Callable[[Request], Evaluated]
    for_vit: bool = True


def changed(
    request: Request, protocol: str, changes: dict[str, str], image_size: int | None = None
) -> Request:
    """The request for one protocol."""
    return request.replace(protocol=protocol, changes=changes, image_size=image_size)


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
            "seg-probe CamVid mIoU",
            ("seg_camvid_trainval",),
            lambda request: run_segment(changed(request, "seg-probe", scale.probe), city),
        )
    ]
    for name, title in (("fg_human", "people"), ("fg_bag_even", "bags")):
        masks = SegmentationData(
            images=data / name / "images", labels=data / name / "masks", binary=True, classes=2
        )
        found.append(
            Column(
                f"seg-probe {title} mIoU",
                (name,),
                lambda request, masks=masks: run_segment(  # type: ignore[misc]
                    changed(request, "seg-probe", scale.foreground), masks
                ),
            )
        )
    found.append(
        Column(
            "detect-small raccoon AP50",
            ("det_raccoon",),
            lambda request: run_detect(
                changed(request, "detect-small", scale.detect, scale.detect_size),
                DetectionData(voc=raccoon, splits=("train", "test")),
            ),
            for_vit=False,
        )
    )
    if scale.fcn is not None:
        fcn = scale.fcn
        found.append(
            Column(
                "seg-moco-fcn16 CamVid mIoU",
                ("seg_camvid_trainval",),
                lambda request: run_segment(changed(request, "seg-moco-fcn16", fcn), city),
                for_vit=False,
            )
        )
    found += classification_columns(scale, data, work)
    return found


def classification_columns(scale: Scale, data: Path, work: Path) -> list[Column]:
    """KNN and the cached linear probe on Caltech-101, or on the first images of each class."""
    needs = ("caltech101_train", "caltech101_test")

    def folders() -> tuple[Path, Path]:
        if scale.per_class is None:
            return data / needs[0], data / needs[1]
        return tuple(  # type: ignore[return-value]
            first_images(data / name, work / f"{name}_first{count}", count)
            for name, count in zip(needs, scale.per_class, strict=True)
        )

    def knn(request: Request) -> Evaluated:
        train, test = folders()
        return run_knn(changed(request, "knn-dino", {}, scale.image_size), train=train, test=test)

    def linear(request: Request) -> Evaluated:
        train, test = folders()
        return run_linear(
            changed(request, "linear-moco-cached", {}, scale.image_size), train=train, test=test
        )

    found = [Column("knn-dino Caltech-101 top 1", needs, knn)]
    if scale.linear:
        found.append(Column("linear-moco-cached Caltech-101 top 1", needs, linear))
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

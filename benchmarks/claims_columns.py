"""Columns and scales of the claims table: which protocols on which data, how long and how large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from claims_rows import Row

from hapicl.data.images.folder import find_images
from hapicl.evaluate.classification.run import knn_task, linear_task
from hapicl.evaluate.detection.run import DetectionData, detect_task
from hapicl.evaluate.measure import Evaluated, Task, measure
from hapicl.evaluate.segmentation.run import SegmentationData, segment_task
from hapicl.evaluate.settings import Request

Kind = Literal["resnet", "vit"]  # of backbone


@dataclass(frozen=True)
class LabelledSet:
    """A set of class folders: its name in titles, training and test folder below the data folder."""

    title: str
    train: str
    test: str

    @property
    def needs(self) -> tuple[str, str]:
        """The folders that must be there."""
        return self.train, self.test


CALTECH = LabelledSet("Caltech-101", "caltech101_train", "caltech101_test")
TINY_DEV = LabelledSet("tiny ImageNet 100", "tiny_dev100_train130/train", "tiny_dev100_val50/val")
SMALL_DETECTOR = {"shape.channels": "32", "shape.hidden": "128", "shape.regions": "32", "batch_size": "4"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How long and how large everything is."""

    image_size: int
    steps: int | None  # of pretraining; None: as long as the recipe says
    # options of `hapicl pretrain` besides recipe, data, seed, size, length and folder
    pretrain: tuple[str, ...]
    resnet: tuple[str, str]  # architecture and stem of the rows on a ResNet
    vit: tuple[str, str]  # and of those on a Vision Transformer
    images: str  # pretraining images, below the data folder
    limit: int | None  # how many of them
    classes: LabelledSet  # of kNN and linear probe
    per_class: tuple[int, int] | None  # its training and test images a class; None: all
    probe: dict[str, str]
    foreground: dict[str, str]
    detect_size: int
    detect: dict[str, str]
    fcn: dict[str, str] | None
    detect_vit_size: int
    detect_vit: dict[str, str] | None  # None, as for the next: the ViT rows are not fine-tuned by it
    upernet: dict[str, str] | None
    linear: bool

    def backbone(self, row: Row) -> tuple[str, str]:
        """Architecture and stem of a row."""
        return self.vit if row.vit else self.resnet


# 8 epochs of 13,000 photographs of 64 pixels, long enough for methods to leave their random start; a map of
# 4 x 4 cells. Half an hour to three hours of a core a run, by processor; two minutes of a GPU
RESNET18 = Scale(
    image_size=64,
    steps=1624,
    pretrain=("--batch-size", "64", "--set", "precision=bf16", "--set", "schedule.warmup_epochs=1"),
    resnet=("resnet18", "no_pool"),
    vit=("vit_tiny_patch16_224", "patch8"),
    images="tiny_dev100_train130/train",
    limit=None,
    classes=TINY_DEV,
    per_class=None,
    probe={"height": "120", "width": "160", "steps": "400", "batch_size": "16"},
    foreground={"height": "96", "width": "96", "steps": "300", "batch_size": "16"},
    detect_size=96,
    detect=SMALL_DETECTOR | {"steps": "300", "warmup_steps": "30"},
    fcn={"crop": "112", "steps": "300", "batch_size": "8"},
    detect_vit_size=128,
    detect_vit=SMALL_DETECTOR | {"steps": "300", "warmup_steps": "30"},
    upernet={
        "crop": "112",
        "side": "120",
        "channels": "32",
        "auxiliary_channels": "32",
        "steps": "300",
        "batch_size": "8",
        "warmup_steps": "30",
    },
    linear=True,
)
# the same with a network whose step takes a 25th of the time: a quarter of an hour of a core a run, so that
# three seeds of every row are within reach. float32: processors without AVX-512 imitate bfloat16, slower
CPU = replace(
    RESNET18,
    pretrain=("--batch-size", "64", "--set", "schedule.warmup_epochs=1"),
    resnet=("timm:test_resnet", "stride16"),
    vit=("test_vit", "patch8"),
)

SCALES = {
    # a toy: that everything runs, nothing more
    "smoke": Scale(
        image_size=64,
        steps=40,
        pretrain=("--batch-size", "16"),
        resnet=("resnet18", "no_pool"),
        vit=("vit_tiny_patch16_224", "patch8"),
        images="imagenet1000",
        limit=320,
        classes=CALTECH,
        per_class=(8, 4),
        probe={"height": "72", "width": "96", "steps": "200"},
        foreground={"height": "96", "width": "96", "steps": "150", "batch_size": "16"},
        detect_size=64,
        detect=SMALL_DETECTOR | {"steps": "50", "warmup_steps": "10"},
        fcn=None,
        detect_vit_size=128,
        detect_vit=None,
        upernet=None,
        linear=False,
    ),
    "cpu": CPU,
    "resnet18": RESNET18,
    # one GPU, the recipes' own 200 epochs
    "small": Scale(
        image_size=128,
        steps=None,
        pretrain=(),
        resnet=("resnet18", "imagenet"),
        vit=("vit_tiny_patch16_224", "patch16"),
        images="imagenet1000",
        limit=None,
        classes=CALTECH,
        per_class=None,
        probe={"height": "240", "width": "320", "steps": "2000"},
        foreground={"height": "224", "width": "224", "steps": "1000"},
        detect_size=192,
        detect={"steps": "1500"},
        fcn={"crop": "224", "steps": "2000", "batch_size": "16"},
        detect_vit_size=256,
        detect_vit={"steps": "1500"},
        upernet={"crop": "224", "side": "240", "steps": "2000", "batch_size": "16"},
        linear=True,
    ),
}


def settings_of(scale: Scale) -> dict[str, str]:
    """Everything of a scale that changes a number, in words; numbers measured by others do not mix."""
    length = "as long as the recipe says" if scale.steps is None else f"{scale.steps} steps"
    per_class = "all" if scale.per_class is None else " and ".join(map(str, scale.per_class))
    found = {
        "pretraining": f"recipes METHOD_small, {scale.image_size} px, {length}, {' '.join(scale.pretrain)}",
        "backbones": " and ".join(" with stem ".join(each) for each in (scale.resnet, scale.vit)),
        "pretraining images": scale.images + ("" if scale.limit is None else f", the first {scale.limit}"),
        "seg-probe on CamVid": in_words(scale.probe),
        "seg-probe on people and bags, a quarter held out": in_words(scale.foreground),
        "detect-small": f"short side {scale.detect_size}, {in_words(scale.detect)}",
        f"{scale.classes.title}, training and test images a class": per_class,
    }
    if scale.fcn is not None:
        found["seg-moco-fcn16"] = in_words(scale.fcn)
    if scale.detect_vit is not None:
        found["detect-small-vit"] = f"side {scale.detect_vit_size}, {in_words(scale.detect_vit)}"
    if scale.upernet is not None:
        found["seg-upernet-small"] = in_words(scale.upernet)
    return found


def in_words(changes: dict[str, str]) -> str:
    """Changed parameters as a phrase."""
    return ", ".join(f"{name} {value}" for name, value in changes.items())


@dataclass(frozen=True, kw_only=True)
class Column:
    """A protocol on a data set: its title, what it needs on disk, how its task is made.

    A `costly` column fine-tunes a network; it waits until every row has the others. Detectors and
    segmentation networks are of one kind of backbone (`of`), which is fine-tuned with them.
    """

    title: str
    needs: tuple[str, ...]
    protocol: str
    task: Callable[[Request], Task]
    changes: dict[str, str] = field(default_factory=dict)
    image_size: int | None = None
    of: Kind | Literal["any"] = "any"
    costly: bool = False

    def takes(self, row: Row) -> bool:
        """Whether a row is measured by this column."""
        kinds = ("any", "vit" if row.vit else "resnet")
        return self.of in kinds and (row.fine_tuned or not self.costly)

    def run(self, request: Request) -> Evaluated:
        """Measure the request's weights by this column."""
        changed = request.replace(protocol=self.protocol, changes=self.changes, image_size=self.image_size)
        return measure(changed, self.task(changed))


def columns(scale: Scale, data: Path, work: Path) -> list[Column]:
    """All columns of a scale, whether or not their data is there."""
    camvid = data / "seg_camvid_trainval"
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
    return found + fine_tuned_columns(scale, city, data) + classification_columns(scale, data, work)


def fine_tuned_columns(scale: Scale, city: SegmentationData, data: Path) -> list[Column]:
    """A detector and a segmentation network for each kind of backbone."""
    where = DetectionData(voc=data / "det_raccoon", splits=("train", "test"))
    detect, segment = partial(detect_task, where=where), partial(segment_task, where=city)
    every: tuple[tuple[Kind, str, dict[str, str] | None, int | None], ...] = (
        ("resnet", "detect-small", scale.detect, scale.detect_size),
        ("vit", "detect-small-vit", scale.detect_vit, scale.detect_vit_size),
        ("resnet", "seg-moco-fcn16", scale.fcn, None),
        ("vit", "seg-upernet-small", scale.upernet, None),
    )
    return [
        Column(
            title=f"{protocol} raccoon AP50" if size else f"{protocol} CamVid mIoU",
            needs=("det_raccoon",) if size else ("seg_camvid_trainval",),
            protocol=protocol,
            changes=changes,
            image_size=size,
            task=detect if size else segment,
            of=kind,
            costly=True,
        )
        for kind, protocol, changes, size in every
        if changes is not None
    ]


def classification_columns(scale: Scale, data: Path, work: Path) -> list[Column]:
    """KNN and the cached linear probe on class folders, or on the first images of each class."""
    classes = scale.classes

    def folders() -> dict[str, Path]:
        counts = scale.per_class or (None, None)
        places = [
            data / name if count is None else first_images(data / name, work / f"{name}_first{count}", count)
            for name, count in zip(classes.needs, counts, strict=True)
        ]
        return dict(zip(("train", "test"), places, strict=True))

    found = [
        Column(
            title=f"knn-dino {classes.title} top 1",
            needs=classes.needs,
            protocol="knn-dino",
            image_size=scale.image_size,
            task=lambda request: knn_task(request, **folders()),
        )
    ]
    if scale.linear:
        found.append(
            Column(
                title=f"linear-moco-cached {classes.title} top 1",
                needs=classes.needs,
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

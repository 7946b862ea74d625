"""One function per command: from paths and a protocol's name to a result; `commands.py` parses and prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import UserError, did_you_mean
from ..data.images.class_folders import LabelledImages, class_folders, fraction_per_class, listed
from ..models.backbones.base import Backbone
from ..models.weights import WeightsInfo, load_backbone
from ..pretrain.config.settings import LARGEST_IMAGE, LARGEST_SEED
from .finetune import Runtime, settings_from
from .result import Outcome, Run, make_result, run_seeds


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every evaluation is asked with."""

    weights: str
    protocol: str
    changes: dict[str, str] = field(default_factory=dict)  # --set
    arch: str | None = None
    stem: Any = None
    image_size: int | None = None
    runs: int = 1
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        """Refuse what no evaluation can be asked with."""
        if self.runs < 1:
            raise UserError(f"--runs {self.runs}: give at least 1")
        if not 0 <= self.seed <= LARGEST_SEED - (self.runs - 1):
            raise UserError(f"--seed {self.seed}: seeds are 0 to 2**64 - 1, those of all runs")
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            raise UserError(f"--image-size {self.image_size}: give 1 to {LARGEST_IMAGE} pixels")


Evaluated = tuple[dict[str, Any], list[Run]]


def choose(protocols: dict[str, Any], request: Request) -> Any:
    """The named protocol with the request's changes; `--image-size` sets what it has of that kind."""
    if request.protocol not in protocols:
        hint = did_you_mean(request.protocol, protocols)
        raise UserError(f"unknown protocol {request.protocol!r}{hint}; choose one of {', '.join(protocols)}")
    protocol = protocols[request.protocol]
    return settings_from(protocol, _sides(protocol, request.image_size) | request.changes)


def _sides(protocol: Any, image_size: int | None) -> dict[str, str]:
    """What `--image-size` means for a protocol, as changes."""
    if image_size is None:
        return {}
    names = {entry.name for entry in dataclasses.fields(protocol)}
    if "shape" in names:  # a detector's
        return {"shape.short_sides": f"[{image_size}]", "shape.long_side": str(round(image_size * 5 / 3))}
    return {name: str(image_size) for name in ("image_size", "height", "width", "crop") if name in names}


def measure(
    request: Request,
    *,
    task: str,
    headline: str,
    parameters: dict[str, Any],
    data: dict[str, Any],
    image_size: int,
    evaluate: Callable[[Backbone, int, dict[str, Any]], Outcome],
    draws: bool = True,
) -> Evaluated:
    """Load the weights once per seed, evaluate, gather the result.

    Args:
        request: the request.
        task, headline, parameters, data: for the result.
        image_size: side of the images the backbone sees, pixels.
        evaluate: takes the backbone, the seed and what identifies the run; gives the outcome.
        draws: whether the protocol draws anything; if not, several runs of fixed weights are all the same.
    """
    if request.runs > 1 and not draws and request.weights != "random":
        request.say(
            f"warning: {request.protocol} draws nothing, so --runs {request.runs} measures the same number "
            "each time; the deviation will be 0"
        )

    def once(seed: int) -> tuple[dict[str, Any], Outcome]:
        backbone, info = load_backbone(
            request.weights, arch=request.arch, image_size=image_size, stem=request.stem, seed=seed
        )
        if seed == request.seed:
            request.say(info.line())
        return info.record(), evaluate(backbone, seed, _identity(request, info, data))

    runs = run_seeds(once, runs=request.runs, seed=request.seed)
    result = make_result(
        task=task,
        protocol=request.protocol,
        headline=headline,
        parameters={**parameters, "precision": request.runtime.precision},
        data=data,
        runs=runs,
    )
    return result, runs


def _identity(request: Request, info: WeightsInfo, data: dict[str, Any]) -> dict[str, Any]:
    """What a run folder must be of, to be continued."""
    return {"name": request.protocol, "weights": info.sha256, "stem": info.stem, "data": data}


def _folders(train: Path, test: Path) -> tuple[LabelledImages, LabelledImages, dict[str, Any]]:
    """Training and test class folders with the same classes."""
    learnt = class_folders(train)
    asked = class_folders(test, learnt.classes)
    return learnt, asked, {"train": learnt.record(), "test": asked.record()}


def run_knn(request: Request, *, train: Path, test: Path) -> Evaluated:
    """`evaluate knn`."""
    from .classification.features import default_resize, extract_features
    from .classification.knn import PROTOCOLS, evaluate_knn

    size = request.image_size or 224
    protocol = choose(PROTOCOLS, request)
    learnt, asked, data = _folders(train, test)

    def evaluate(backbone: Backbone, seed: int, identity: dict[str, Any]) -> Outcome:
        found = [
            extract_features(
                backbone,
                images,
                image_size=size,
                workers=request.runtime.workers,
                device=request.runtime.device,
            )
            for images in (learnt, asked)
        ]
        return evaluate_knn(found[0], found[1], learnt.classes, protocol)

    parameters = {**dataclasses.asdict(protocol), "image_size": size, "resize": default_resize(size)}
    return measure(
        request,
        task="knn",
        headline="top1",
        parameters=parameters,
        data=data,
        image_size=size,
        evaluate=evaluate,
        draws=False,
    )


def run_linear(request: Request, *, train: Path, test: Path) -> Evaluated:
    """`evaluate linear`."""
    from .classification.linear import PROTOCOLS, evaluate_linear

    protocol = choose(PROTOCOLS, request)
    learnt, asked, data = _folders(train, test)
    return measure(
        request,
        task="linear",
        headline="top1",
        parameters=dataclasses.asdict(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=lambda backbone, seed, identity: evaluate_linear(
            backbone, learnt, asked, protocol, seed=seed, runtime=request.runtime, identity=identity
        ),
    )


def run_semi(
    request: Request, *, train: Path, test: Path, list_file: Path | None, fraction: float | None
) -> Evaluated:
    """`evaluate semi`; the few images come from a list file, or are a share of each class."""
    from .classification.semi import PROTOCOLS, evaluate_semi

    protocol = choose(PROTOCOLS, request)
    learnt, asked, data = _folders(train, test)
    if (list_file is None) == (fraction is None):
        raise UserError("give either --list FILE or --fraction F (such as 0.01)")
    few = (
        listed(learnt, list_file) if list_file else fraction_per_class(learnt, fraction or 0.0, request.seed)
    )
    data["labelled"] = {"images": len(few), "list": str(list_file) if list_file else f"fraction {fraction}"}
    return measure(
        request,
        task="semi",
        headline="top1",
        parameters=dataclasses.asdict(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=lambda backbone, seed, identity: evaluate_semi(
            backbone, few, asked, protocol, seed=seed, runtime=request.runtime, identity=identity
        ),
    )


def run_svm(
    request: Request, *, train: Path | None, test: Path | None, voc: Path | None, splits: tuple[str, str]
) -> Evaluated:
    """`evaluate svm`, on class folders or VOC's classification lists."""
    from .classification.features import extract_features
    from .classification.svm import PROTOCOLS, evaluate_svm, folder_signs, voc_signs

    protocol = choose(PROTOCOLS, request)
    if voc is not None:
        learnt, train_signs = voc_signs(voc, splits[0])
        asked, test_signs = voc_signs(voc, splits[1])
        data = {"train": learnt.record(), "test": asked.record() | {"name": f"{voc.name}/{splits[1]}"}}
    elif train is not None and test is not None:
        learnt, asked, data = _folders(train, test)
        train_signs, test_signs = folder_signs(learnt), folder_signs(asked)
    else:
        raise UserError("give --train and --test (class folders), or --voc (the VOC layout)")

    def evaluate(backbone: Backbone, seed: int, identity: dict[str, Any]) -> Outcome:
        found = [
            extract_features(
                backbone,
                images,
                image_size=protocol.image_size,
                workers=request.runtime.workers,
                device=request.runtime.device,
            ).values.numpy()
            for images in (learnt, asked)
        ]
        return evaluate_svm(found[0], train_signs, found[1], test_signs, protocol, seed=seed)

    return measure(
        request,
        task="svm",
        headline="map",
        parameters=dataclasses.asdict(protocol),
        data=data,
        image_size=protocol.image_size,
        evaluate=evaluate,
    )


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """Where images and label PNGs are."""

    images: Path | None = None
    labels: Path | None = None
    test_images: Path | None = None
    test_labels: Path | None = None
    voc: Path | None = None
    splits: tuple[str, str] = ("train", "val")
    holdout: float = 0.25  # where no test set is named
    void: int = 255
    binary: bool = False
    classes: int | None = None


def run_segment(request: Request, where: SegmentationData) -> Evaluated:
    """`evaluate segment`."""
    from .segmentation.data import hold_out, paired_folders, voc_split, with_classes
    from .segmentation.segment import PROTOCOLS, ProbeProtocol, evaluate_segmentation

    protocol = choose(PROTOCOLS, request)
    options: dict[str, Any] = {"void": where.void}
    if where.voc is not None:
        learnt, asked = (voc_split(where.voc, split, **options) for split in where.splits)
    elif where.images is not None and where.labels is not None:
        options["binary"] = where.binary
        learnt = paired_folders(where.images, where.labels, **options)
        if (where.test_images is None) != (where.test_labels is None):
            raise UserError("give --test-images and --test-labels together, or neither (then --holdout)")
        if where.test_images is not None and where.test_labels is not None:
            asked = paired_folders(where.test_images, where.test_labels, **options)
        else:
            learnt, asked = hold_out(learnt, where.holdout)
    else:
        raise UserError("give --images and --labels, or --voc (the VOC layout)")
    learnt, asked = with_classes(learnt, asked, where.classes)
    size = protocol.width if isinstance(protocol, ProbeProtocol) else protocol.crop
    return measure(
        request,
        task="segment",
        headline="miou",
        parameters=dataclasses.asdict(protocol),
        data={"train": learnt.record(), "test": asked.record()},
        image_size=size,
        evaluate=lambda backbone, seed, identity: evaluate_segmentation(
            backbone, learnt, asked, protocol, seed=seed, runtime=request.runtime, identity=identity
        ),
    )


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """Where images and boxes are."""

    voc: Path | None = None
    splits: tuple[str, str] = ("trainval", "test")
    images: Path | None = None
    annotations: Path | None = None
    test_images: Path | None = None
    test_annotations: Path | None = None
    holdout: float = 0.25


def run_detect(request: Request, where: DetectionData) -> Evaluated:
    """`evaluate detect`."""
    from .detection.data import coco_objects, hold_out_objects, voc_objects
    from .detection.detect import PROTOCOLS, evaluate_detection

    protocol = choose(PROTOCOLS, request)
    if where.voc is not None:
        learnt = voc_objects(where.voc, where.splits[0])
        asked = voc_objects(where.voc, where.splits[1], learnt.classes)
    elif where.images is not None and where.annotations is not None:
        if where.test_images is not None and where.test_annotations is None:
            raise UserError("--test-images needs --test-annotations: the COCO JSON of the test set")
        learnt = coco_objects(where.images, where.annotations)
        if where.test_annotations is not None:
            asked = coco_objects(where.test_images or where.images, where.test_annotations, learnt.classes)
        else:
            learnt, asked = hold_out_objects(learnt, where.holdout)
    else:
        raise UserError("give --voc (the VOC layout), or --images and --annotations (COCO JSON)")
    return measure(
        request,
        task="detect",
        headline=protocol.headline,
        parameters=dataclasses.asdict(protocol),
        data={"train": learnt.record(), "test": asked.record()},
        image_size=protocol.shape.short_sides[-1],
        evaluate=lambda backbone, seed, identity: evaluate_detection(
            backbone, learnt, asked, protocol, seed=seed, runtime=request.runtime, identity=identity
        ),
    )

"""From a task to a result: load the weights once per seed, evaluate, gather.

The baseline `random` has its BatchNorm statistics estimated on training images of the evaluation, as any
training would have them; `random-untouched` has not (see `models.batch_statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.errors import UserError
from ..data.images.inputs import inputs_of
from ..models.backbones.base import Backbone, require_photographs
from ..models.batch_statistics import ENOUGH_IMAGES, reestimate_batchnorm
from ..models.weights import RANDOM, WeightsInfo, describe_weights, load_backbone
from .identity import content
from .result import Outcome, Run, make_result, run_seeds
from .settings import Request, Runtime

ANY_CHANNELS = ("knn", "linear", "semi", "svm")  # tasks that read images as the weights say


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What one run measures, and how.

    `identity` is JSON-able: what the run folder must be of, to be continued.
    """

    backbone: Backbone
    info: WeightsInfo
    seed: int
    runtime: Runtime
    identity: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """An evaluation on its data, ready to run on weights.

    `train_images(subject)` gives batches of normalised training images as the task shows them to the
    backbone, (B, 3, H, W), in an order drawn by the seed. `draws` says whether the protocol draws anything;
    if not, several runs of fixed weights are all the same.
    """

    name: str  # the command: knn, linear, semi, svm, segment, detect
    headline: str
    parameters: dict[str, Any]
    data: dict[str, Any]
    image_size: int  # side of the images the backbone sees, pixels
    evaluate: Callable[[Subject], Outcome]
    train_images: Callable[[Subject], Iterable[Tensor]]
    draws: bool = True


Evaluated = tuple[dict[str, Any], list[Run]]


def measure(request: Request, task: Task) -> Evaluated:
    """Run a task once per seed and gather its result."""
    if request.runs > 1 and not task.draws and request.weights not in RANDOM:
        request.say(
            f"warning: {request.protocol} draws nothing, so --runs {request.runs} measures the same number "
            "each time; the deviation will be 0"
        )

    def once(seed: int) -> tuple[dict[str, Any], Outcome]:
        subject, record = _subject(request, task, seed)
        return record, task.evaluate(subject)

    runs = run_seeds(once, runs=request.runs, seed=request.seed)
    result = make_result(
        task=task.name,
        protocol=request.protocol,
        headline=task.headline,
        parameters=_parameters(request, task),
        data=task.data,
        image_size=task.image_size,
        content=_content(request, task, runs[0].weights),
        runs=runs,
    )
    return result, runs


def content_of(request: Request, task: Task) -> str:
    """Hash of everything that changes the numbers of this request, before anything is computed."""
    return _content(request, task, _load(request, task, request.seed)[1].record())


def _content(request: Request, task: Task, weights: dict[str, Any]) -> str:
    """The hash, from the first run's weights."""
    return content(
        task=task.name,
        protocol=request.protocol,
        parameters=_parameters(request, task),
        data=task.data,
        image_size=task.image_size,
        seeds=range(request.seed, request.seed + request.runs),
        weights=weights,
    )


def check_weights(request: Request) -> None:
    """Refuse weights that cannot be, before any data is read.

    Raises:
        UserError: for a file that is not there, or random weights of no architecture.
    """
    if request.weights in RANDOM:
        if request.arch is None and request.like is None:
            raise UserError(
                f"{request.weights} weights are of which network? Give --like WEIGHTS to take it from the "
                "weights they are compared with, or --arch (such as resnet50)"
            )
        files = []
    else:
        files = [request.weights]
    for file in files if request.like is None else [*files, request.like]:
        if not Path(file.removeprefix("supervised:")).is_file():
            describe_weights(file)  # says what is wrong with it


def _load(request: Request, task: Task, seed: int) -> tuple[Backbone, WeightsInfo]:
    """The weights of one run."""
    arch, stem, inputs = request.arch, request.stem, None
    if request.like is not None:
        described = describe_weights(request.like)
        stem = stem or described.get("stem")
        if request.weights in RANDOM:  # others say themselves which network they are of
            arch = arch or described.get("arch")
            inputs = inputs_of(described)
    backbone, info = load_backbone(
        request.weights, arch=arch, image_size=task.image_size, stem=stem, inputs=inputs, seed=seed
    )
    if task.name not in ANY_CHANNELS:
        require_photographs(backbone, task.name)
    return backbone, info


def _subject(request: Request, task: Task, seed: int) -> tuple[Subject, dict[str, Any]]:
    """Load the weights of one run; give it and the weights' record."""
    backbone, info = _load(request, task, seed)
    lines = [info.line()]
    record = info.record()
    identity: dict[str, Any] = {
        "name": request.protocol,
        "weights": info.sha256,
        "stem": info.stem,
        "data": task.data,
    }
    subject = Subject(backbone=backbone, info=info, seed=seed, runtime=request.runtime, identity=identity)
    if info.kind == "random":
        counted = _reestimate(subject, task)
        record["batchnorm_images"] = identity["batchnorm_images"] = counted
        lines.append(_baseline_line(counted))
    elif info.kind == "random-untouched":
        lines.append("BatchNorm statistics as initialised (mean 0, variance 1); `random` re-estimates them")
    if seed == request.seed:
        for line in lines:
            request.say(line)
    return subject, record


def _reestimate(subject: Subject, task: Task) -> int:
    """BatchNorm statistics from training images; how many there were."""
    what = f"BatchNorm statistics of up to {ENOUGH_IMAGES:,} images"
    with subject.runtime.progress(what, ENOUGH_IMAGES) as advance:

        def counted() -> Iterable[Tensor]:
            for images in task.train_images(subject):
                yield images
                advance(len(images))

        return reestimate_batchnorm(subject.backbone, counted(), device=subject.runtime.device)


def _parameters(request: Request, task: Task) -> dict[str, Any]:
    """Every parameter of the result."""
    return {**task.parameters, "precision": request.runtime.precision}


def _baseline_line(images: int) -> str:
    """What was done to random weights before they were measured."""
    if not images:
        return "no BatchNorm in this network: random and random-untouched are the same row"
    return (
        f"BatchNorm statistics re-estimated on {images} training images of this evaluation, no weight "
        "changed; `random-untouched` goes without"
    )

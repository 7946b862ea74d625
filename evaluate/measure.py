"""From a request to a result: load the weights once per seed, evaluate, gather.

The baseline `random` has its BatchNorm statistics estimated on training images of the evaluation, as any
training would have them; `random-untouched` has not (see `models.batch_statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models.backbones.base import Backbone
from ..models.batch_statistics import reestimate_batchnorm
from ..models.weights import WeightsInfo, load_backbone
from .result import Outcome, Run, make_result, run_seeds
from .settings import Request


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What one run measures.

    `identity` is JSON-able: what the run folder must be of, to be continued.
    """

    backbone: Backbone
    info: WeightsInfo
    seed: int
    identity: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """An evaluation, ready to run.

    `train_images(seed)` gives batches of normalised training images as the task shows them to the backbone,
    (B, 3, H, W), in an order drawn by the seed. `draws` says whether the protocol draws anything; if not,
    several runs of fixed weights are all the same.
    """

    name: str  # the command: knn, linear, semi, svm, segment, detect
    headline: str
    parameters: dict[str, Any]
    data: dict[str, Any]
    image_size: int  # side of the images the backbone sees, pixels
    evaluate: Callable[[Subject], Outcome]
    train_images: Callable[[int], Iterable[Tensor]]
    draws: bool = True


Evaluated = tuple[dict[str, Any], list[Run]]


def measure(request: Request, task: Task) -> Evaluated:
    """Run a task once per seed and gather its result."""
    if request.runs > 1 and not task.draws and not request.weights.startswith("random"):
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
        parameters={**task.parameters, "precision": request.runtime.precision},
        data=task.data,
        runs=runs,
    )
    return result, runs


def _subject(request: Request, task: Task, seed: int) -> tuple[Subject, dict[str, Any]]:
    """Load the weights of one run; give it and the weights' record."""
    backbone, info = load_backbone(
        request.weights, arch=request.arch, image_size=task.image_size, stem=request.stem, seed=seed
    )
    lines = [info.line()]
    record = info.record()
    identity: dict[str, Any] = {
        "name": request.protocol,
        "weights": info.sha256,
        "stem": info.stem,
        "data": task.data,
    }
    if info.kind == "random":
        counted = reestimate_batchnorm(backbone, task.train_images(seed), device=request.runtime.device)
        record["batchnorm_images"] = identity["batchnorm_images"] = counted
        lines.append(_baseline_line(counted))
    elif info.kind == "random-untouched":
        lines.append("BatchNorm statistics as initialised (mean 0, variance 1); `random` re-estimates them")
    if seed == request.seed:
        for line in lines:
            request.say(line)
    return Subject(backbone=backbone, info=info, seed=seed, identity=identity), record


def _baseline_line(images: int) -> str:
    """What was done to random weights before they were measured."""
    if not images:
        return "no BatchNorm in this network: random and random-untouched are the same row"
    return (
        f"BatchNorm statistics re-estimated on {images} training images of this evaluation, no weight "
        "changed; `random-untouched` leaves them out"
    )

"""The evaluations as functions, for scripts and notebooks.

Each gives the result that its command writes: a mapping with `mean` and `std` over runs, `protocol`,
`weights`, every parameter, and what it was measured on. In a notebook `result["mean"]` is what one looks at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from ..common.config import Settings, build
from ..common.errors import UserError
from ..common.locks import hold_folder
from ..common.terminal.progress import show_progress
from ..engine.distributed import choose_device
from .measure import Task, check_weights, measure
from .result import write_result
from .settings import Request, Runtime

if TYPE_CHECKING:
    from .compare.labels import LabelledSet
    from .compare.outcome import Comparison
    from .compare.run import Plan

Place = str | os.PathLike[str]
Result = dict[str, Any]


class Options(TypedDict, total=False):
    """What every evaluation takes besides its weights and data.

    Attributes:
        protocol: its name; each function has one by default.
        changes: settings of the protocol that differ, by name, as `--set` takes them.
        arch, stem: of the backbone, where the weights do not say.
        like: weights that random ones take their network from.
        image_size: side of the images that the backbone sees, pixels.
        runs: how many, with seeds from `seed` on.
        device, workers: where and with how many loader processes it is computed.
        out: where to write the result too, as JSON that `hapicl evaluate table` reads.
        say: takes what is told on the way; prints it by default.
        show: whether progress is shown.
    """

    protocol: str
    changes: Mapping[str, object]
    arch: str | None
    stem: str | None
    like: str | None
    image_size: int | None
    runs: int
    seed: int
    device: str
    workers: int
    out: Place
    say: Callable[[str], None]
    show: bool


def knn(weights: str, *, train: Place, test: Place, **options: Unpack[Options]) -> Result:
    """Nearest neighbours on frozen features; `knn-dino` by default.

    Args:
        weights: a run folder, a weight file, `torchvision:NAME`, `timm:NAME`, or `random`.
        train, test: labelled images, one folder for each class.
        options: see `Options`.

    Raises:
        UserError: for weights, data or settings that do not fit.

    Examples:
        >>> options = {"changes": {"k": 3}, "image_size": 32, "say": str, "show": False}
        >>> result = knn("random", arch="resnet18", train="labelled", test="labelled", **options)
        >>> result["protocol"], 0 <= result["mean"]["top1"] <= 1
        ('knn-dino', True)
    """
    from .classification.run import knn_task

    return _measured(
        lambda request: knn_task(request, train=Path(train), test=Path(test)), weights, "knn-dino", options
    )


def linear(weights: str, *, train: Place, test: Place, **options: Unpack[Options]) -> Result:
    """A linear classifier on the frozen backbone; `linear-moco` by default; arguments as for `knn`.

    Examples:
        >>> options = {"arch": "resnet18", "image_size": 32, "say": str, "show": False}
        >>> changes = {"epochs": 2, "batch_size": 3}
        >>> quick = {"protocol": "linear-moco-cached", "changes": changes, **options}
        >>> result = linear("random", train="labelled", test="labelled", **quick)
        >>> result["parameters"]["epochs"], 0 <= result["mean"]["top1"] <= 1
        (2, True)
    """
    from .classification.run import linear_task

    return _measured(
        lambda request: linear_task(request, train=Path(train), test=Path(test)),
        weights,
        "linear-moco",
        options,
    )


def semi(weights: str, *, train: Place, test: Place, fraction: float, **options: Unpack[Options]) -> Result:
    """Fine-tuning with a fraction of the labels; arguments as for `knn`, and `fraction` of each class.

    Examples:
        >>> options = {"arch": "resnet18", "image_size": 32, "say": str, "show": False}
        >>> options["changes"] = {"epochs": 1, "batch_size": 2}
        >>> result = semi("random", train="labelled", test="labelled", fraction=0.5, **options)
        >>> result["task"], 0 <= result["mean"]["top1"] <= 1
        ('semi', True)
    """
    from .classification.run import semi_task

    return _measured(
        lambda request: semi_task(
            request, train=Path(train), test=Path(test), list_file=None, fraction=fraction
        ),
        weights,
        "semi-finetune",
        options,
    )


def svm(weights: str, *, train: Place, test: Place, **options: Unpack[Options]) -> Result:
    """One linear SVM per class on frozen features; `svm-voc07` by default; arguments as for `knn`.

    Examples:
        >>> options = {"arch": "resnet18", "image_size": 32, "say": str, "show": False}
        >>> result = svm("random", train="labelled", test="labelled", **options)
        >>> result["task"], 0 <= result["mean"]["map"] <= 1
        ('svm', True)
    """
    from .classification.run import svm_task

    def task(request: Request) -> Task:
        return svm_task(request, train=Path(train), test=Path(test), voc=None, splits=("", ""))

    return _measured(task, weights, "svm-voc07", options)


def segment(weights: str, **options: Any) -> Result:
    """Semantic segmentation; `seg-probe` by default.

    Args:
        weights: as for `knn`.
        options: where images and label PNGs are, see `SegmentationData` (`images`, `labels`, `test_images`,
            `test_labels`, `voc`, ...), and those of `Options`.

    Raises:
        UserError: for weights, data or settings that do not fit.

    Examples:
        >>> options = {"arch": "resnet18", "image_size": 32, "say": str, "show": False}
        >>> options["changes"] = {"steps": 2, "batch_size": 2}
        >>> result = segment("random", images="streets/images", labels="streets/labels", **options)
        >>> result["protocol"], 0 <= result["mean"]["miou"] <= 1
        ('seg-probe', True)
    """
    from .segmentation.run import SegmentationData, segment_task

    where = build(SegmentationData, _others(options))
    return _measured(lambda request: segment_task(request, where), weights, "seg-probe", _own(options))


def detect(weights: str, **options: Any) -> Result:
    """Detection or instance segmentation; `detect-small` by default.

    Args:
        weights: as for `knn`.
        options: where images and annotations are, see `DetectionData` (`images`, `annotations`,
            `test_images`, `test_annotations`, `voc`, ...), and those of `Options`.

    Raises:
        UserError: for weights, data or settings that do not fit.

    Examples:
        >>> options = {"arch": "resnet18", "image_size": 32, "say": str, "show": False}
        >>> options["changes"] = {"steps": 1, "batch_size": 2, "warmup_steps": 0, "shape.regions": 8}
        >>> result = detect("random", images="boxes/images", annotations="boxes/boxes.json", **options)
        >>> result["protocol"], 0 <= result["mean"]["ap50"] <= 1
        ('detect-small', True)
    """
    from .detection.run import DetectionData, detect_task

    where = build(DetectionData, _others(options))
    return _measured(lambda request: detect_task(request, where), weights, "detect-small", _own(options))


def compare(
    task: Literal["segment", "detect"],
    initialisations: Mapping[str, str],
    *,
    out: Place = "compare",
    fractions: Sequence[float] = (0.05, 0.25, 1.0),
    seeds: int = 3,
    against: str = "",
    budget_hours: float | None = None,
    **options: Any,
) -> Comparison:
    """Did pretraining help? Initialisations by label fractions by seeds, on your labelled images.

    What is measured already under `out` is taken from there, so the same call goes on after an interruption.

    Args:
        task: what is learnt from the labels.
        initialisations: name -> weights; `random` is the reference unless `against` names another.
        out: folder of the cells and of the report, `compare.html` and others.
        fractions: of the labelled training images.
        seeds: how many; under 3 nothing is decided.
        against: the reference's name.
        budget_hours: begin no cell that would end later.
        options: where the data are, as for `segment` and `detect`, and those of `Options` (without `runs`,
            `seed` and `like`).

    Returns:
        The comparison; its `verdicts()` are sentences, as the page has them.

    Raises:
        UserError: for weights, data or settings that do not fit.
        RunStopped: after a signal; what was measured is kept.

    Examples:
        >>> found = compare(
        ...     "segment", {"random": "random", "untouched": "random-untouched"}, arch="resnet18",
        ...     image_size=32, fractions=[1.0], seeds=1, changes={"steps": 2, "batch_size": 4},
        ...     images="streets/images", labels="streets/labels", show=False, say=str,
        ... )
        >>> found.left, len(found.verdicts())
        (0, 1)
    """
    from .compare.run import Plan
    from .compare.settings import CompareSettings, check_request

    given, where = dict(_own(options)), _others(options)
    say: Any = given.pop("say", print)
    runtime = _runtime(given)
    changes: Any = given.pop("changes", {})
    settings = build(
        CompareSettings,
        {
            "protocol": "seg-probe" if task == "segment" else "detect-small",
            **given,
            "initialisations": dict(initialisations),
            "fractions": tuple(fractions),
            "seeds": seeds,
            "against": against,
            "budget_hours": budget_hours,
            "changes": _as_changes(changes),
        },
    )
    folder = Path(out)
    with hold_folder(folder, advice="wait for it to end, or choose another place"):
        protocols, read = _labelled(task)
        check_request(settings, protocols)
        return _compared(
            Plan(settings=settings, labelled=read(where), runtime=runtime, folder=folder, say=say)
        )


def _compared(plan: Plan) -> Comparison:
    """Measure the cells that are missing, and write the report."""
    from .compare.outcome import compare_measured
    from .compare.report.files import write_reports
    from .compare.run import Measured, run_cells

    measured: dict[Any, Measured] = {}
    run_cells(plan, measured)
    if not measured:
        raise UserError(f"no cell fits into budget_hours={plan.settings.budget_hours}; give more")
    left = plan.cells - len(measured)
    found = compare_measured(plan.settings, plan.labelled, measured, left=left, command="hapicl.compare(...)")
    write_reports(found, plan.folder)
    return found


def _labelled(task: str) -> tuple[Mapping[str, Settings], Callable[[Mapping[str, Any]], LabelledSet]]:
    """The protocols of a task, and what reads its labelled images.

    Raises:
        UserError: for another task.
    """
    from .compare import labels

    if task == "segment":
        from .segmentation.protocols import PROTOCOLS as SEGMENTATION
        from .segmentation.run import SegmentationData

        return SEGMENTATION, lambda where: labels.segmentation_labels(build(SegmentationData, where))
    if task == "detect":
        from .detection.protocols import PROTOCOLS as DETECTION
        from .detection.run import DetectionData

        return DETECTION, lambda where: labels.detection_labels(build(DetectionData, where))
    raise UserError(f"compare {task}: choose segment or detect")


def _measured(make: Callable[[Request], Task], weights: str, protocol: str, options: Options) -> Result:
    """Build the request, run its task, and write the result where a place is given."""
    given = dict(options)
    out: Any = given.pop("out", None)
    changes: Any = given.pop("changes", {})
    runtime = _runtime(given)
    request = build(
        Request,
        {
            "protocol": protocol,
            **given,
            "weights": weights,
            "changes": _as_changes(changes),
            "runtime": runtime,
        },
    )
    check_weights(request)
    result, _ = measure(request, make(request))
    if out is not None:
        write_result(result, Path(out))
    return result


def _runtime(given: dict[str, Any]) -> Runtime:
    """Take from the options how an evaluation is computed."""
    values: dict[str, Any] = {
        "device": choose_device(given.pop("device", "auto")),
        "workers": given.pop("workers", 0),
    }
    if given.pop("show", True):
        values["progress"] = show_progress
    return build(Runtime, values)


def _as_changes(changes: Mapping[str, object]) -> dict[str, str]:
    """Settings as `--set` takes them."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in changes.items()}


def _own(options: Mapping[str, Any]) -> Options:
    """Those of `Options`."""
    return {name: value for name, value in options.items() if name in Options.__annotations__}  # type: ignore[return-value]


def _others(options: Mapping[str, Any]) -> dict[str, Any]:
    """Where the data are."""
    return {name: value for name, value in options.items() if name not in Options.__annotations__}

"""One evaluation's result: every number with the protocol, parameters, seeds, weights and machine it needs.

A result file is JSON. Numbers are those of the last step, never the best over epochs; the mean and the sample
standard deviation (n - 1) are over runs that differ in their seed only.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..common.atomic_files import atomic_write
from ..common.errors import UserError
from ..common.system.devices import gpu_name
from ..common.system.processor import usable_cores
from ..engine.distributed import world_size

FORMAT = 1
LIBRARIES = ("torch", "torchvision", "timm", "scikit-learn", "faster-coco-eval", "numpy")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run of a protocol gives.

    `metrics` are fractions in [0, 1] unless the name carries a unit. `per_class` maps a class name to its
    value of the headline metric; None where the class does not occur. `curves` map a name to (step, value)
    rows. `confusion` is (classes, classes), row: truth, column: prediction. `vectors` names what stood for an
    image, where one vector does, the headline's first.
    Not in the result file: `pictures`, (caption, (H, W, 3) uint8), for the report; and `per_image`, what each
    test image adds to the headline, for whoever draws the test images again (`class_counts` of segmentation,
    `match_detections` of detection).
    """

    metrics: dict[str, float]
    per_class: dict[str, float | None] = field(default_factory=dict)
    confusion: list[list[int]] | None = None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    pictures: list[tuple[str, np.ndarray]] = field(default_factory=list)
    vectors: tuple[str, ...] = ()
    per_image: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its seed, what it gave, its wall time."""

    seed: int
    seconds: float
    weights: dict[str, Any]
    outcome: Outcome


def run_seeds(
    evaluate: Callable[[int], tuple[dict[str, Any], Outcome]], *, runs: int, seed: int
) -> list[Run]:
    """Run a protocol once per seed: `seed`, `seed + 1`, and so on.

    Args:
        evaluate: takes a seed, gives the weights' record and the outcome.
        runs: how many, at least 1.
        seed: the first.
    """
    done = []
    for number in range(seed, seed + runs):
        start = time.perf_counter()
        weights, outcome = evaluate(number)
        done.append(Run(seed=number, seconds=time.perf_counter() - start, weights=weights, outcome=outcome))
    return done


def make_result(
    *,
    task: str,
    protocol: str,
    headline: str,
    parameters: dict[str, Any],
    data: dict[str, Any],
    runs: list[Run],
    image_size: int | None = None,
    content: str | None = None,
) -> dict[str, Any]:
    """Gather the runs of one protocol into a result's JSON.

    Args:
        task: the command: knn, linear, semi, svm, segment, detect.
        protocol: its name, such as `seg-probe`; numbers of different protocols are not comparable.
        headline: name of the metric that tables show.
        parameters: every parameter of the protocol.
        data: what it was measured on.
        runs: at least one.
        image_size: side of the images the backbone saw, pixels.
        content: hash of everything that changes the numbers (see `identity.content`).
    """
    names = list(runs[0].outcome.metrics)
    values = {name: [run.outcome.metrics[name] for run in runs] for name in names}
    if headline not in names:
        raise ValueError(f"headline {headline!r} is none of the metrics {names}")
    broken = [name for name in names if not all(math.isfinite(value) for value in values[name])]
    if broken:
        raise UserError(
            f"{protocol}: {broken[0]} is not a finite number; lower the learning rate (--set lr=...)"
        )
    return {
        "format": FORMAT,
        "task": task,
        "protocol": protocol,
        "headline": headline,
        "content": content,
        "image_size": image_size,
        "mean": {name: statistics.fmean(values[name]) for name in names},
        "std": {name: statistics.stdev(values[name]) if len(runs) > 1 else None for name in names},
        "runs": [_run_record(run) for run in runs],
        "weights": runs[0].weights,
        "parameters": parameters,
        "data": data,
        "code_version": code_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES if _installed(name)},
        "hardware": hardware(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _run_record(run: Run) -> dict[str, Any]:
    """JSON-able form of one run, without the pictures and what each test image adds."""
    outcome = dataclasses.asdict(dataclasses.replace(run.outcome, pictures=[], per_image={}))
    del outcome["pictures"], outcome["per_image"]
    return {
        "seed": run.seed,
        "seconds": round(run.seconds, 2),
        "weights_sha256": run.weights["sha256"],
        **outcome,
    }


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write a result file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(result, indent=1) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        UserError: if it is missing, no JSON, or no result of ours.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give result files of `hapicl evaluate`"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON ({error}); give result files of `hapicl evaluate`") from error
    if not isinstance(result, dict) or not {"protocol", "headline", "mean", "runs"} <= set(result):
        raise UserError(f"{path} is no result file of `hapicl evaluate`; leave it out")
    if result.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {result.get('format')}, this version reads {FORMAT}; run it again"
        )
    broken = [name for name, holds in _PARTS.items() if not holds(result)]
    if broken:
        raise UserError(f"{path}: its {broken[0]!r} is not what `hapicl evaluate` writes; run it again")
    return result


def _number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _headline_in(result: dict[str, Any], name: str) -> Any:
    """The headline's value in the mapping `name`; a text where there is none."""
    return result[name].get(result["headline"], "") if isinstance(result.get(name), dict) else ""


# what every reader of a result relies on, by the part's name
_PARTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "protocol": lambda result: isinstance(result["protocol"], str),
    "headline": lambda result: isinstance(result["headline"], str),
    "mean": lambda result: _number(_headline_in(result, "mean")),
    "std": lambda result: (found := _headline_in(result, "std")) is None or _number(found),
    "runs": lambda result: isinstance(result["runs"], list) and bool(result["runs"]),
    "weights": lambda result: (
        isinstance(result.get("weights"), dict)
        and {"kind", "arch", "spec", "sha256"} <= result["weights"].keys()
    ),
    "data": lambda result: (
        isinstance(result.get("data"), dict) and isinstance(result["data"].get("test", {}), dict)
    ),
}


def code_version() -> str:
    """Package version, and the commit when the package runs from a git checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return __version__
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=20)
    except OSError:  # no git on this machine
        return __version__
    return f"{__version__}+{answer.stdout.strip()}" if answer.returncode == 0 else __version__


def hardware() -> dict[str, Any]:
    """Name the machine: processor, cores in reach, GPU, and how many processes worked on it."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "gpu": gpu_name(),
        "processes": world_size(),
        "python": platform.python_version(),
    }


def _installed(name: str) -> bool:
    """Whether a distribution is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True

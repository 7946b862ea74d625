"""Settings of a run, filled from a recipe, `--set key=value` and the options.

Unknown keys are errors that name the near miss; a setting that has no effect is said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ...common.config import Count, CountOrZero, PathText, Positive, Settings
from ...common.errors import UserError
from ...common.plain_yaml import read_yaml
from ...data.images.inputs import Inputs
from ...data.loading.batch import MissingMasks
from ...engine.loggers.dashboards import DashboardName
from ...engine.optimizers import OptimizerSettings
from ...engine.schedule import ScheduleSettings

LARGEST_IMAGE = 8192  # pixels; a typing mistake beyond it would ask for all memory there is
LARGEST_SEED = 2**64 - 1  # what torch's generators and our counters both take

ImageSize = Annotated[int, Field(ge=1, le=LARGEST_IMAGE)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
LayerDecay = Annotated[float, Field(gt=0, le=1)]


def _split_names(value: Any) -> Any:
    """`stem,layer1` as a list."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


StageNames = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
Compared = Literal["map", "pooled"]
LoggerNames = Annotated[tuple[DashboardName | Literal["none"], ...], BeforeValidator(_split_names)]
Epochs = Annotated[float, Field(gt=0, le=1e6)]


class Start(Settings):
    """What is read before the recipe is chosen: the method, the data, and the run to go on with."""

    method: str = "hapicl_m"
    masks: PathText | None = None
    images: PathText | None = None  # None: the root recorded in the mask file
    limit: Count | None = None  # first images of the sorted list only
    out: PathText | None = None  # None: runs/<method>_<arch>
    resume: PathText | None = None  # "auto", a checkpoint or a run folder


class RunSettings(Start, Inputs):
    """Everything `pretrain` needs; written to config.json. Paths are kept as given.

    Alone it applies no recipe: `resolve` does, as the command.

        >>> RunSettings(masks="masks.h5", arch="resnet18", epochs=10).image_size
        224
    """

    # what is trained
    arch: str = "resnet50"
    # what the backbone starts from: a weight file, a run folder, torchvision:NAME or timm:NAME; None: random
    weights: PathText | None = None
    # for a run that starts from weights; see the page "Start from existing weights"
    freeze: StageNames | None = None  # stages of the backbone that stay as they are, such as [stem, layer1]
    freeze_batchnorm: bool | None = None  # true: the backbone's BatchNorms keep their running statistics
    layer_decay: LayerDecay | None = None  # of the rate, by stage from the last to the first
    # strength of the pull of the backbone's weights towards where they started, in place of their decay
    pull: Positive | None = None
    # weight of the distance between the backbone's features and those of a frozen copy of its start
    feature_pull: Positive | None = None
    feature_pull_on: Compared | None = None  # cell by cell, which is the default, or their mean
    stem: str = "auto"  # of a ResNet imagenet, no_pool or stride1; of a ViT its patch, such as patch8
    image_size: ImageSize = 224  # side of the views, pixels
    epochs: Epochs | None = None  # 200 where neither is given
    steps: Count | None = None  # optimiser steps; instead of epochs
    batch_size: Count = 256  # samples of one optimiser step, over all processes
    grad_accum_steps: Count = 1  # the batch is computed in this many parts
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    config: dict[str, Any] = Field(default_factory=dict)  # of the method's Config
    seed: Seed = 0
    missing_masks: MissingMasks = "error"
    use_low_confidence: bool = True  # False: leave out the images whose mask is flagged low_confidence
    # this session: may differ when a run is resumed
    device: str = "auto"
    # loader processes of each training process; None: by the CPUs at hand
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast on CUDA, fp32 elsewhere
    channels_last: bool = True
    compile: bool = False
    log_every: Count = 10  # optimiser steps
    logger: LoggerNames = ("tensorboard",)  # dashboards beside metrics.jsonl; none: no dashboard
    checkpoint_every: Count = 500
    keep_every: CountOrZero = 0  # keep a checkpoint for good every so many steps; 0: none
    stop_after: Count | None = None  # leave with a checkpoint after so many steps
    profile: CountOrZero = 0  # steps to trace
    knn_train: PathText | None = None  # folders of class folders for the online kNN
    knn_val: PathText | None = None
    knn_every: CountOrZero = 0  # optimiser steps; 0: once an epoch
    knn_images: CountOrZero = 2000  # of each of the two folders, drawn by seed; 0: all
    about: dict[str, Any] = Field(default_factory=dict)  # the recipe's words: source, expected, measured

    @property
    def inputs(self) -> Inputs:
        """How images are read and normalised."""
        return Inputs(**{name: getattr(self, name) for name in INPUTS})

    @model_validator(mode="after")
    def _check_run(self) -> Self:
        """Refuse settings that contradict each other."""
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give --epochs or --steps, not both")
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of grad_accum_steps {self.grad_accum_steps}"
            )
        if (self.knn_train is None) != (self.knn_val is None):
            raise ValueError("the online kNN needs both --knn-train and --knn-val")
        if self.feature_pull is not None and self.compile:
            raise ValueError("feature_pull looks into the backbone, so it does not go with --compile")
        if "none" in self.logger and len(self.logger) > 1:
            raise ValueError("--logger none stands alone: leave it out, or the others")
        return self

    @property
    def dashboards(self) -> tuple[str, ...]:
        """The dashboards that are written to, each once."""
        return tuple(dict.fromkeys(name for name in self.logger if name != "none"))


# need weights
INPUTS = tuple(Inputs.model_fields)  # how images are read
OF_A_START = ("freeze", "freeze_batchnorm", "layer_decay", "pull", "feature_pull")
# a resumed run may change these
SESSION = frozenset(
    {
        "out",
        "resume",
        "images",
        "masks",
        "weights",  # the path; what it holds is compared by its digest
        "about",
        "device",
        "workers",
        "precision",
        "channels_last",
        "compile",
    }
    | {"log_every", "logger", "checkpoint_every", "keep_every", "stop_after", "profile"}
    | {"knn_train", "knn_val", "knn_every", "knn_images"}
)


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn `a.b=c` pairs into a nested mapping; the value is read as YAML.

    Raises:
        UserError: for a pair without `=`, or a value that is no YAML.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes key=value, such as --set optimizer.base_lr=0.05, not {pair!r}")
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {pair!r}: {parent} was given a value before")
        try:
            place[last] = read_yaml(text)
        except ValueError as error:
            shown = pair if len(pair) <= 80 else f"{pair[:77]}..."
            raise UserError(f"--set {shown!r}: the value is no YAML of settings: {error}") from error
    return nested


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give nested settings as dotted pairs."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def without_effect(settings: RunSettings, given: Mapping[str, Any], *, uses_masks: bool) -> list[str]:
    """Name the given settings that this run ignores.

    Args:
        settings: the resolved settings.
        given: what recipe, `--set` and options state, nested.
        uses_masks: whether the method reads masks.

    Returns:
        Sentences for the user.
    """
    found = []
    kind = settings.optimizer.name
    ignored = {"sgd": ("betas", "eps", "trust"), "lars": ("betas", "eps"), "adamw": ("momentum", "trust")}[
        kind
    ]
    for name in given.get("optimizer", {}):
        if name in ignored:
            found.append(f"optimizer.{name} has no effect with {kind}")
    for name, needed in (("milestones", "steps"), ("gamma", "steps"), ("final_fraction", "cosine")):
        if name in given.get("schedule", {}) and settings.schedule.name != needed:
            found.append(f"schedule.{name} has no effect with the {settings.schedule.name} schedule")
    if not uses_masks and "missing_masks" in given:
        found.append(f"--missing-masks has no effect: {settings.method} reads no masks")
    if not uses_masks and "use_low_confidence" in given:
        found.append(f"use_low_confidence has no effect: {settings.method} reads no masks")
    for name in ("knn_every", "knn_images"):
        if settings.knn_train is None and name in given:
            found.append(f"{name} has no effect without --knn-train and --knn-val")
    if settings.feature_pull is None and "feature_pull_on" in given:
        found.append("feature_pull_on has no effect without feature_pull")
    if settings.precision == "fp32" and settings.device == "cpu" and "precision" in given:
        found.append("precision=fp32 has no effect on the CPU, where it is the default")
    return found

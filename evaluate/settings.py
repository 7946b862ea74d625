"""What a user sets of an evaluation: the request, how it is computed, and changes of a protocol.

Each protocol is a class of settings (see `common.config.Settings`) beside the code that runs it; its numbers
are bounded there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import ConfigDict, Field, model_validator

from ..common.config import Count, Settings, build, merge
from ..common.errors import UserError, did_you_mean
from ..common.terminal.progress import Progress, no_progress
from ..pretrain.config.settings import LARGEST_SEED, ImageSize, Seed, parse_overrides
from .features import FeatureStore

AnyProtocol = TypeVar("AnyProtocol", bound=Settings)

Between = Annotated[float, Field(gt=0, lt=1)]  # a fraction that leaves something on both sides


class Runtime(Settings):
    """How an evaluation is computed; none of it changes what is measured, beyond rounding.

    `store` keeps the features of frozen backbones: several evaluations of one backbone that are given the
    same one read every image once.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    device: torch.device = torch.device("cpu")
    workers: int = Field(default=0, ge=0, le=1024)
    folder: Path | None = None  # checkpoints and run logger of the runs; None: neither
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: Count = 500  # optimiser steps
    stop_after: Count | None = None  # leave after this many steps of this session (tests)
    progress: Progress = no_progress
    store: FeatureStore | None = None

    def seed_folder(self, seed: int) -> Path | None:
        """The run folder of one seed."""
        return None if self.folder is None else self.folder / f"seed{seed}"


class Request(Settings):
    """What every evaluation is asked with."""

    weights: str
    protocol: str
    changes: dict[str, str] = Field(default_factory=dict)  # --set
    like: str | None = None  # weights that random ones take their network from
    arch: str | None = None
    stem: str | None = None
    image_size: ImageSize | None = None
    runs: int = Field(default=1, ge=1, le=10_000)
    seed: Seed = 0
    runtime: Runtime = Runtime()
    say: Callable[[str], None] = print

    @model_validator(mode="after")
    def _check_seeds(self) -> Request:
        """Refuse a first seed that leaves no room for those of the other runs."""
        if self.seed > LARGEST_SEED - (self.runs - 1):
            raise ValueError(f"seed {self.seed}: seeds are 0 to 2**64 - 1, those of all {self.runs} runs")
        return self


def choose(protocols: Mapping[str, AnyProtocol], request: Request) -> AnyProtocol:
    """The named protocol with the request's changes; `--image-size` sets what it has of that kind.

    Raises:
        UserError: for an unknown protocol or setting (the near miss is named), or a value it refuses.
    """
    if request.protocol not in protocols:
        hint = did_you_mean(request.protocol, protocols)
        raise UserError(f"unknown protocol {request.protocol!r}{hint}; choose one of {', '.join(protocols)}")
    protocol = protocols[request.protocol]
    return change(protocol, _sides(protocol, request.image_size) | request.changes)


def change(protocol: AnyProtocol, changes: Mapping[str, str]) -> AnyProtocol:
    """Change settings of a protocol as `--set name=value` does; values are read as YAML.

    Raises:
        UserError: names the setting that is unknown or refused.
    """
    nested = parse_overrides([f"{name}={text}" for name, text in changes.items()])
    return build(type(protocol), merge(protocol.model_dump(), nested))


def _sides(protocol: Settings, image_size: int | None) -> dict[str, str]:
    """What `--image-size` means for a protocol, as changes."""
    if image_size is None:
        return {}
    names = set(type(protocol).model_fields)
    if "shape" in names:  # a detector's: ViTDet sees squares
        shape = protocol.shape  # type: ignore[attr-defined]
        square = shape.long_side == shape.short_sides[-1]
        longest = image_size if square else round(image_size * 5 / 3)
        return {"shape.short_sides": f"[{image_size}]", "shape.long_side": str(longest)}
    return {
        name: str(image_size) for name in ("image_size", "height", "width", "crop", "side") if name in names
    }


def parameters(protocol: Settings) -> dict[str, Any]:
    """Every setting of a protocol as JSON has it: tuples as lists."""
    return protocol.model_dump(mode="json")

"""The files of a run folder besides its weights: what they are called, and how they are read and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.atomic_files import atomic_write
from ...common.errors import UserError

LOSS, CHANCE = "loss/", "chance/"  # groups of the loss terms and of their values at chance level
OLD_KEY = "samples_per_second"  # in metrics.jsonl before numbers were grouped by slash
METRICS, LOG, CONFIG, EVENTS = "metrics.jsonl", "train.log", "config.json", "tensorboard"


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, whole."""
    with atomic_write(folder / CONFIG) as part:
        part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run folder's config.json.

    Raises:
        UserError: if it is missing, not JSON, or no run's; names the folder.
    """
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder} is no run folder: it has no {CONFIG}; give the --out of a `hapicl pretrain`"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); was it edited?") from error
    if not isinstance(config, dict) or not {"settings", "data", "total_steps"} <= config.keys():
        raise UserError(f"{path} is not the {CONFIG} of a run; give the --out of a `hapicl pretrain`")
    if "accumulate" in config["settings"]:  # every config.json named it so before 1.0
        raise UserError(
            f"{path} was written by an earlier version, which names its settings otherwise (accumulate, "
            "lr_per_256): go on with that run in the hapicl that wrote it, or start a new one with another "
            "--out"
        )
    return config


def read_metrics(folder: Path) -> Iterator[dict[str, float]]:
    """Give the lines of a run's metrics.jsonl; a last line cut by a crash is left out.

    Raises:
        UserError: for a file whose numbers have the names of an earlier version.
    """
    path = folder / METRICS
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            values = None
        if isinstance(values, dict):
            if OLD_KEY in values:
                raise UserError(
                    f"{path} was written by an earlier version, whose numbers had other names (instance for "
                    "loss/instance): read it with that version, or train the run again"
                )
            yield values
        else:
            print(f"{path}: a line is cut and left out: {line[:60]}", file=sys.stderr)


def drop_from(path: Path, step: int) -> None:
    """Keep the metrics of steps before a resume's position."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

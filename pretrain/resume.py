"""Starting in a folder or going on in it: what `--out` and `--resume` mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..common.atomic_files import is_part, refuse_unwritable
from ..common.errors import UserError
from ..common.locks import LOCK
from ..data.images.inputs import RGB
from ..engine.checkpoint import LAST
from ..engine.loggers.dashboards import REMEMBERED
from ..engine.loggers.run_files import CONFIG
from ..engine.schedule import ScheduleSettings, lr_factor
from ..models.backbones.build import build_backbone
from .config.settings import SESSION, RunSettings, flatten

LENGTH = frozenset({"epochs", "steps"})


def find_checkpoint(settings: RunSettings, folder: Path) -> Path | None:
    """The checkpoint that `--resume` means; None for a fresh start.

    Raises:
        UserError: if a fresh start would write over what is in the folder.
    """
    if settings.resume is None:
        refuse_used_folder(folder)
        return None
    if settings.resume == "auto":
        if not (folder / LAST).exists():
            _refuse_without_checkpoint(folder)
            return None
        return folder / LAST
    given = Path(settings.resume)
    return given / LAST if given.is_dir() else given


def _refuse_without_checkpoint(folder: Path) -> None:
    """Let `--resume auto` start afresh, also where a run died before its first checkpoint."""
    leftovers = {CONFIG, "metrics.jsonl", "train.log", "views.npz", "trace.json"}
    leftovers |= {"tensorboard", "wandb", REMEMBERED}
    if folder.is_dir() and not _entries(folder) <= leftovers:
        refuse_used_folder(folder)


def check_same_training(
    before: dict[str, Any], now: dict[str, Any], checkpoint: Path | None, *, images_differ_in: str = ""
) -> None:
    """Refuse to continue a run as another one.

    Args:
        before, now: config.json of the checkpoint and of this session.
        checkpoint: named in the refusal.
        images_differ_in: how the images differ, where the checkpoint tells (it has a memory bank).

    Raises:
        UserError: naming the settings or the data that differ.
    """
    if not _tells_its_training(before):
        raise UserError(f"{checkpoint} does not say of which training it is; give a checkpoint of this run")
    # runs before this setting were of photographs
    old = dict(flatten({"in_channels": RGB.in_channels, **_named_stem(before["settings"])}))
    new = dict(flatten(now["settings"]))
    may_differ = SESSION | (LENGTH if _is_longer(before, now) else frozenset())
    differing = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys(), key=str)
        if str(key).split(".")[0] not in may_differ and old.get(key) != new.get(key)
    ]
    then, data = before["data"], now["data"]
    if any(then.get(name) != data[name] for name in ("images", "paths_sha256")):
        differing.append(
            f"the images are others ({then.get('images')} then, {data['images']} now"
            f"{': ' if images_differ_in else ''}{images_differ_in})"
        )
    if then.get("masks_digest") != data["masks_digest"]:
        differing.append(
            f"{now['settings']['masks']} holds other masks (content digest {then.get('masks_digest')} then, "
            f"{data['masks_digest']} now)"
        )
    if _weights_digest(before) != _weights_digest(now):
        differing.append(f"it started from {_weights_words(before)}, and is given {_weights_words(now)}")
    if differing:
        raise UserError(
            f"{checkpoint} is of another training: {'; '.join(differing)}. Give the same settings, or start "
            "a new run with another --out"
        )


def _tells_its_training(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's config.json has what is compared and continued here."""
    steps, extended = config.get("total_steps"), config.get("extended", [])
    lists = isinstance(extended, list) and isinstance(config.get("sessions", []), list)
    groups = isinstance(config.get("settings"), dict) and isinstance(config.get("data"), dict)
    return groups and type(steps) is int and steps >= 1 and lists


def _weights_digest(config: dict[str, Any]) -> Any:
    """Digest of the weights that a run started from; None: random."""
    weights = config.get("weights")
    return weights.get("sha256") if isinstance(weights, dict) else None


def _weights_words(config: dict[str, Any]) -> str:
    """What a run started from, for people."""
    digest = _weights_digest(config)
    return f"{config['weights'].get('spec')} (sha256 {digest})" if digest else "random weights"


def _named_stem(settings: dict[str, Any]) -> dict[str, Any]:
    """A run's settings with the stem that `auto` meant; config.json once kept the word."""
    arch, side = settings.get("arch"), settings.get("image_size")
    if settings.get("stem") != "auto" or not isinstance(arch, str) or type(side) is not int:
        return settings
    with torch.device("meta"):
        backbone = build_backbone(arch, image_size=side)
    return {**settings, "stem": backbone.stem}


def _is_longer(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a run is to take as many steps as before or more, so that it can go on."""
    steps = before.get("total_steps")
    return isinstance(steps, int) and now["total_steps"] >= steps


def note_extension(
    before: dict[str, Any], now: dict[str, Any], schedule: ScheduleSettings, *, step: int
) -> str:
    """Write into config.json which lengths a run had before; what to tell the user if this one is new.

    Args:
        before, now: config.json of the checkpoint and of this session, which gets `extended`.
        schedule: of the learning rate.
        step: optimiser step the run goes on at.
    """
    old, new = before["total_steps"], now["total_steps"]
    now["extended"] = list(before.get("extended", []))
    if new == old:
        return ""
    now["extended"].append({"at_step": step, "from_steps": old})
    then, after = (
        now["lr"] * lr_factor(schedule, min(step, total - 1), total, now["steps_per_epoch"])
        for total in (old, new)
    )
    return (
        f"extended from {old} to {new} steps at step {step}: from here the {schedule.name} schedule is that "
        f"of {new} steps (learning rate {after:.3g}; that of {old} steps had come to {then:.3g}), and so is "
        f"whatever else the method moves over a run; it is not the training that {new} steps from the start "
        "would have been"
    )


def refuse_unusable_folder(folder: Path) -> None:
    """Refuse a place where no run folder can be; makes nothing.

    Raises:
        UserError: if it is a file, or may not be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    refuse_unwritable(folder / CONFIG)


def refuse_used_folder(folder: Path) -> None:
    """Refuse to write over another run.

    Raises:
        UserError: if the folder holds anything; names the ways on.
    """
    if folder.is_dir() and _entries(folder):
        holds = "a run" if (folder / CONFIG).exists() else "files"
        raise UserError(
            f"--out {folder} already holds {holds}; continue it with --resume auto, or choose another --out"
        )


def _entries(folder: Path) -> set[str]:
    """Names in a folder, without our lock and without files in the making (another machine's, if any)."""
    return {path.name for path in folder.iterdir() if path.name != LOCK and not is_part(path.name)}

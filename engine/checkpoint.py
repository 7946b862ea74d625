"""Checkpoints: written whole or not at all, checked before they are believed, loaded without running code.

A checkpoint is torch's zip file, in which every tensor has a CRC-32; reading verifies all of them.
`last.pt` is the newest, `previous.pt` the one before, `checkpoints/step_*.pt` those kept for good.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..common.atomic_files import atomic_write, part_path
from ..common.errors import UserError

LAST, PREVIOUS, KEPT = "last.pt", "previous.pt", "checkpoints"
FORMAT = 2  # 1 kept the config under `settings`, with the names of settings of before 1.0
# what zipfile and torch raise on a file that is not whole; nothing else is taken for damage
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    KeyError,
    NotImplementedError,
    UnicodeDecodeError,
)


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another kind; the message names it and what to do."""


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
    keep: bool = False,
) -> Path:
    """Write `last.pt`; the one it replaces becomes `previous.pt`.

    Args:
        folder: the run folder.
        step: optimiser steps done.
        module: its parameters and buffers are saved (queues, banks and EMA copies are among them).
        optimizer: its state is saved.
        config: JSON-able, to tell on resume whether this is the same training.
        keep: also keep it as `checkpoints/step_<step>.pt`.

    Returns:
        The path of `last.pt`.
    """
    state = {
        "format": FORMAT,
        "version": __version__,
        "torch": str(torch.__version__),
        "step": step,
        "config": config,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    last, previous = folder / LAST, folder / PREVIOUS
    with atomic_write(last) as part:
        torch.save(state, part)
        if last.exists():
            spare = part_path(previous)
            spare.unlink(missing_ok=True)
            os.link(last, spare)  # the old file stays readable under both names until the new one is in place
            spare.replace(previous)
    if keep:
        kept = folder / KEPT / f"step_{step:08d}.pt"
        kept.parent.mkdir(exist_ok=True)
        kept.unlink(missing_ok=True)
        os.link(last, kept)
    return last


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU after verifying every checksum.

    Returns:
        What `save_checkpoint` wrote: `step`, `config`, `module`, `optimizer`, `version`, ...

    Raises:
        CheckpointError: names the damage, and the newest whole checkpoint beside it to go on with.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give --resume a .pt file or a run folder")
    damage = find_damage(path)
    if damage is None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"checkpoint {path} holds more than tensors and plain values and is not loaded, since that "
                "could run foreign code; take a checkpoint that `hapicl pretrain` wrote"
            ) from error
        except _DAMAGE as error:
            damage = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            return _of_this_kind(path, state)
    raise CheckpointError(f"checkpoint {path} is damaged ({damage}); {_advice(path)}")


def find_damage(path: Path) -> str | None:
    """Verify length and checksums; returns what is wrong, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except _DAMAGE as error:
        return str(error) or type(error).__name__
    return None if broken is None else f"checksum of {broken} does not match"


def _of_this_kind(path: Path, state: Any) -> dict[str, Any]:
    """Refuse files that are whole but no checkpoint of this format."""
    if not isinstance(state, dict) or "format" not in state or "module" not in state:
        raise CheckpointError(
            f"{path} is not a checkpoint of `hapicl pretrain`; give last.pt of a run folder"
        )
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}; continue that run "
            f"with the hapicl that wrote it ({state.get('version', 'unknown')}), or start a new one with "
            "another --out"
        )
    return state


def _advice(path: Path) -> str:
    """Name the newest whole checkpoint near a damaged one."""
    folder = path.parent.parent if path.parent.name == KEPT else path.parent
    near = [folder / LAST, folder / PREVIOUS, *sorted((folder / KEPT).glob("step_*.pt"), reverse=True)]
    for other in near:
        if other.is_file() and other.resolve() != path.resolve() and find_damage(other) is None:
            return f"{other} is whole: continue from it with --resume {other}"
    return "no whole checkpoint is beside it, so the run must start again"

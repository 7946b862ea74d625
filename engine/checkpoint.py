"""Checkpoints: written whole or not at all, checked before they are believed, loaded without running code.

A checkpoint is torch's zip file, in which every tensor has a CRC-32; reading verifies all of them.
`last.pt` is the newest, `previous.pt` the one before, `checkpoints/step_*.pt` those kept for good.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..common.atomic_files import atomic_write, part_path
from ..common.errors import UserError

LAST, PREVIOUS, KEPT = "last.pt", "previous.pt", "checkpoints"
FORMAT = 2  # 1 kept the config under `settings`, with the names of settings of before 1.0
# what disks without hard links answer
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
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
        write_torch(state, part)
        if last.exists():
            spare = part_path(previous)
            spare.unlink(missing_ok=True)
            _link(last, spare)  # the old file stays readable under both names until the new one is in place
            spare.replace(previous)
    if keep:
        kept = folder / KEPT / f"step_{step:08d}.pt"
        kept.parent.mkdir(exist_ok=True)
        kept.unlink(missing_ok=True)
        _link(last, kept)
    return last


def _link(file: Path, name: Path) -> None:
    """Give a file a second name, or copy it where the disk has no hard links (exFAT, some shares)."""
    try:
        os.link(file, name)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with atomic_write(name) as part:
            shutil.copyfile(file, part)


def write_torch(content: Any, path: Path) -> None:
    """`torch.save`, with what the disk said where it fails; the bytes do not depend on the file's name.

    Raises:
        OSError: for a full disk; torch alone says only that a position is unexpected.
    """
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


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
            with warnings.catch_warnings():  # of tensors that are refused below (sparse ones)
                warnings.simplefilter("ignore", UserWarning)
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


def restore(path: Path, state: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a loaded checkpoint into a module and its optimiser, after checking that it fits.

    Args:
        path: named in errors.
        state: of `load_checkpoint`.
        module: every tensor must be in the checkpoint, of its shape and type, and none besides.
        optimizer: of the module; its groups keep their own settings, only its state is taken.

    Raises:
        CheckpointError: names the first thing that does not fit; module and optimiser are unchanged.
    """
    saved, own = state["module"], module.state_dict()
    wrong = next((name for name in sorted(own.keys() ^ saved.keys())), None)
    if wrong is not None:
        where = "lacks" if wrong in own else "has a tensor that the network lacks:"
        raise _misfit(path, f"it {where} {wrong}")
    for name, value in own.items():
        varies = name.endswith("_extra_state")  # a module's own affair, which it checks itself
        if not varies and (value.shape, value.dtype) != (saved[name].shape, saved[name].dtype):
            raise _misfit(path, f"{name} is {_kind(saved[name])}, the network's is {_kind(value)}")
    now = optimizer.state_dict()["param_groups"]
    _check_optimizer(path, state["optimizer"], now, optimizer)
    module.load_state_dict(saved)
    optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": now})


def _check_optimizer(path: Path, saved: dict[str, Any], now: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser's state of other parameters, or one that its next step could not use."""
    if [group["params"] for group in now] != [group["params"] for group in saved["param_groups"]]:
        raise _misfit(path, "its optimiser state is of other parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = _state_shapes(optimizer)
    for number, entry in saved["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise _misfit(path, f"its optimiser state names a parameter {number!r}")
        if not isinstance(entry, dict) or entry.keys() != expected.keys():
            raise _misfit(path, f"its optimiser state of parameter {number} is not {sorted(expected)}")
        for name, value in entry.items():
            shape = parameters[number].shape if expected[name] is None else expected[name]
            whole = isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == shape
            if not whole:
                raise _misfit(path, f"its optimiser state {name!r} of parameter {number} has another form")


def _state_shapes(optimizer: torch.optim.Optimizer) -> dict[str, torch.Size | None]:
    """What an optimiser keeps of a parameter, found by one step on another: None stands for its shape."""
    group = optimizer.param_groups[0]
    probe = nn.Parameter(torch.zeros(2, 3, device=group["params"][0].device))
    probe.grad = torch.zeros_like(probe)
    alike = type(optimizer)([{**group, "params": [probe]}])  # type: ignore[call-arg]
    alike.step()
    kept = alike.state[probe].items()
    return {name: None if value.shape == probe.shape else value.shape for name, value in kept}


def _misfit(path: Path, what: str) -> CheckpointError:
    """The error for a whole checkpoint that does not fit."""
    return CheckpointError(f"checkpoint {path} does not fit this training: {what}; {_advice(path)}")


def _kind(tensor: torch.Tensor) -> str:
    """Type and shape of a tensor in words."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _of_this_kind(path: Path, state: Any) -> dict[str, Any]:
    """Refuse files that are whole but no checkpoint of this format."""
    if not isinstance(state, dict) or "format" not in state or "module" not in state:
        raise CheckpointError(
            f"{path} is not a checkpoint of `hapicl pretrain`; give last.pt of a run folder"
        )
    if type(state["format"]) is int and state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}; continue that run "
            f"with the hapicl that wrote it ({state.get('version', 'unknown')}), or start a new one with "
            "another --out"
        )
    broken = next((name for name, holds in _CONTENT.items() if not holds(state.get(name))), None)
    if broken is not None:
        raise CheckpointError(
            f"checkpoint {path} is damaged: its {broken!r} is not what `hapicl pretrain` writes; "
            f"{_advice(path)}"
        )
    return state


def _is_state(value: Any) -> bool:
    """Whether a value is a module's state: dense tensors by name."""
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and isinstance(item, torch.Tensor)
        and (item.layout, item.device.type) == (torch.strided, "cpu")
        for name, item in value.items()
    )


def _is_optimizer_state(value: Any) -> bool:
    """Whether a value has the form of an optimiser's state."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and isinstance(value.get("param_groups"), list)
        and all(
            isinstance(group, dict) and _are_numbers(group.get("params")) for group in value["param_groups"]
        )
    )


def _is_plain(value: Any) -> bool:
    """Whether a value is made of what JSON knows."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


def _are_numbers(value: Any) -> bool:
    """Whether a value is a list of whole numbers."""
    return isinstance(value, list) and all(type(item) is int for item in value)


# what every reader of a checkpoint relies on, by name
_CONTENT: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: type(value) is int,
    "step": lambda value: type(value) is int and 0 <= value < 2**63,  # TensorBoard's events hold no more
    "version": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, dict) and _is_plain(value),
    "module": _is_state,
    "optimizer": _is_optimizer_state,
}


def _advice(path: Path) -> str:
    """Name the newest whole checkpoint near a damaged one."""
    folder = path.parent.parent if path.parent.name == KEPT else path.parent
    near = [folder / LAST, folder / PREVIOUS, *sorted((folder / KEPT).glob("step_*.pt"), reverse=True)]
    for other in near:
        if other.is_file() and other.resolve() != path.resolve() and find_damage(other) is None:
            return f"{other} is whole: continue from it with --resume {other}"
    return "no whole checkpoint is beside it, so the run must start again"

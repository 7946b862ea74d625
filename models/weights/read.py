"""Weight files as dictionaries of tensors, and what the file or its run folder says of the network."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from ...common.errors import UserError
from ...data.images.inputs import inputs_of
from ...engine.checkpoint import find_damage

# what a run folder's config.json or a file's metadata may say about the network
DESCRIPTION = ("arch", "stem", "image_size", "method")

State = dict[str, Tensor]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_weights(path: Path) -> tuple[list[State], dict[str, Any]]:
    """Read every dictionary of tensors in a weight file, and what the file or its run folder says of it.

    Returns:
        The dictionaries, outermost first, and the described `arch`, `stem`, `image_size`, `method`, as far
        as known.

    Raises:
        UserError: if the file is missing, holds other things than tensors, or is broken.
    """
    if not path.is_file():
        raise UserError(
            f"no weight file {path}; give a file, a run folder, torchvision:NAME, timm:NAME, or for an "
            "evaluation `random`"
        )
    if path.suffix == ".safetensors":
        content, described = _read_safetensors(path)
    else:
        content, described = _read_torch(path)
    states = _states(content)
    if not states:
        raise UserError(f"{path} holds no named tensors; give a state_dict or a checkpoint that has one")
    return states, {**_beside(path), **described}


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    """Tensors and the known metadata of a safetensors file."""
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return load_file(path), _described(metadata)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is no readable safetensors file ({error}); export or copy it again"
        ) from error


def _read_torch(path: Path) -> tuple[Any, dict[str, Any]]:
    """Content of a torch file, tensors and plain values only (nothing in it is executed)."""
    with open(path, "rb") as opened:
        zipped = opened.read(2) == b"PK"  # torch before 1.6 wrote bare pickles
    damage = find_damage(path) if zipped else None
    if damage is not None:
        raise UserError(f"{path} is damaged ({damage}); copy it again, or take another checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        # torch's own advice after the first sentence is to read the file unsafely
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise UserError(
            f"{path} cannot be read as plain tensors ({reason}); if you trust the file, load it once in "
            "Python and save only its state_dict with torch.save"
        ) from error
    described: dict[str, Any] = {}
    if isinstance(content, Mapping):
        config = content.get("config")  # a checkpoint of ours holds the run's config.json there
        inner = config.get("settings") if isinstance(config, Mapping) else None
        for holder in (inner, content.get("settings"), config, content):
            if isinstance(holder, Mapping):
                described = {**_described(holder), **described}
    return content, described


def _beside(path: Path) -> dict[str, Any]:
    """What the config.json of the run folder says, if the file lies in one."""
    config = path.parent / "config.json"
    if not config.is_file():
        return {}
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{config} is no JSON ({error}); mend it or move the weight file out") from error
    holder = content.get("settings", content) if isinstance(content, dict) else {}
    return _described(holder)


def _described(holder: Mapping[Any, Any]) -> dict[str, Any]:
    """What settings or a file's metadata say of the network and its images.

    Other toolkits' settings may have a `mean` too, and mean something else by it; ours name the stem.
    """
    found = {key: holder[key] for key in DESCRIPTION if isinstance(holder.get(key), str | int)}
    if {"arch", "stem"} <= found.keys():
        found |= inputs_of(holder).model_dump(exclude_defaults=True)
    return found


def _states(content: Any) -> list[State]:
    """Every dictionary of named tensors inside `content`, outermost first, two levels deep.

    A teacher comes before its student: of DINO's two networks it is the one that is used (its README).
    """
    if not isinstance(content, Mapping):
        return []
    own = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    inner = [
        state
        for _, value in sorted(content.items(), key=lambda item: item[0] != "teacher")
        for state in _states(value)
    ]
    return ([own, *_named_layers(own)] if own else []) + inner


# places of a torchvision ResNet's layers in the nn.Sequential of its children, as lightly keeps them
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _named_layers(state: State) -> list[State]:
    """A ResNet whose layers go by number, `backbone.4.0.conv1.weight`, under its layers' names."""
    found = [name.removesuffix("4.0.conv1.weight") for name in state if name.endswith("4.0.conv1.weight")]
    for prefix in found:
        if {f"{prefix}0.weight", f"{prefix}1.running_mean", f"{prefix}7.0.bn1.bias"} <= state.keys():
            numbered = (
                (name.removeprefix(prefix).partition("."), value)
                for name, value in state.items()
                if name.startswith(prefix)
            )
            return [
                {
                    f"{prefix}{_CHILDREN[number]}.{rest}": value
                    for (number, _, rest), value in numbered
                    if number in _CHILDREN
                }
            ]
    return []

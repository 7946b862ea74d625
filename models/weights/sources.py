"""Where weights come from: a file, a run folder, or a name that torchvision or timm downloads and keeps."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import torch

from ...common.errors import UserError, did_you_mean
from ...engine.checkpoint import LAST
from ..backbones.build import arch_of_timm
from ..backbones.resnet import RESNETS
from .read import State, file_hash, read_weights

TORCHVISION, TIMM, SUPERVISED = "torchvision:", "timm:", "supervised:"
EXPORTED = "backbone.safetensors"  # in a run folder
HUB = "model.safetensors"  # in a folder of `hapicl export --to hub`


@dataclass(frozen=True)
class Source:
    """Weights as they were found, before a network takes them.

    `states` are dictionaries of tensors, outermost first; `described` the `arch`, `stem`, `image_size` and
    `method` as far as known; `sha256` is of the file, of timm's names of the tensors.
    """

    place: str  # named in messages
    states: list[State]
    described: dict[str, Any]
    sha256: str


def open_source(spec: str) -> Source:
    """Read the weights that a user names.

    Args:
        spec: a weight file, a run folder, `torchvision:NAME` or `timm:NAME`; `supervised:` before it changes
            nothing here.

    Raises:
        UserError: for an unknown name, a missing or unreadable file, or a download that failed.
    """
    spec = spec.removeprefix(SUPERVISED)
    if spec.startswith(TIMM):
        return _open_timm(spec)
    described: dict[str, Any] = {}
    if spec.startswith(TORCHVISION):
        path, described["arch"] = _torchvision_file(spec)
    else:
        path = _in_folder(Path(spec))
    states, told = read_weights(path)
    return Source(str(path), states, {**told, **described}, file_hash(path))


def arch_of_name(spec: str) -> str | None:
    """The backbone that a hub name means, without a download; None for files and folders.

    Raises:
        UserError: for a name that the library does not know.
    """
    spec = spec.removeprefix(SUPERVISED)
    if spec.startswith(TIMM):
        return arch_of_timm(_timm_name(spec))
    return _torchvision_weights(spec)[1] if spec.startswith(TORCHVISION) else None


def _in_folder(path: Path) -> Path:
    """The weight file of a run folder, or of one in a hub's form; any other path as it is."""
    if not path.is_dir():
        return path
    found = [path / name for name in (EXPORTED, LAST, HUB) if (path / name).is_file()]
    if not found:
        raise UserError(
            f"{path} is a folder without {EXPORTED} or {LAST}; give a run folder or a weight file"
        )
    return found[0]


def _torchvision_weights(spec: str) -> tuple[Any, str]:
    """Torchvision's entry of a name (`resnet50`, `resnet50.IMAGENET1K_V1`), and the backbone it is of."""
    from torchvision.models import get_model_weights

    arch, _, version = spec.removeprefix(TORCHVISION).partition(".")
    if arch not in RESNETS:
        raise UserError(
            f"--weights {spec}: torchvision's weights serve {', '.join(RESNETS)}"
            f"{did_you_mean(arch, RESNETS, prefix=TORCHVISION)}; others are at timm (timm:NAME)"
        )
    entries = get_model_weights(arch)
    known = list(entries.__members__)
    version = version or "DEFAULT"
    if version not in known:
        raise UserError(f"--weights {spec}: torchvision's {arch} has {', '.join(known)}")
    return entries[version], arch


def _torchvision_file(spec: str) -> tuple[Path, str]:
    """The file in torch's cache, downloaded where it is not there, and the backbone it is of."""
    entry, arch = _torchvision_weights(spec)
    name = Path(urlparse(entry.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path, arch
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = re.search(r"-([a-f0-9]+)\.", name)  # torchvision's names end in the digest's beginning
    try:
        torch.hub.download_url_to_file(entry.url, str(path), hash_prefix=digest and digest[1], progress=False)
    except (OSError, RuntimeError) as error:  # no network, no such page, another digest
        raise UserError(
            f"cannot download {entry.url} ({error}); fetch it where there is a network and give the file, or "
            f"put it into {path.parent}"
        ) from error
    return path, arch


def _timm_name(spec: str) -> str:
    """Timm's name, seen to exist."""
    from timm import is_model, list_models

    name = spec.removeprefix(TIMM)
    if not is_model(name):
        hint = did_you_mean(name, list_models(), prefix=TIMM)
        raise UserError(f"--weights {spec}: timm has no model of this name{hint}")
    return name


def _open_timm(spec: str) -> Source:
    """Let timm download its weights, or take them from its cache; under the names of its own network."""
    import timm

    name = _timm_name(spec)
    try:
        with _without_waiting():
            model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:  # no network, no weights, no such tag
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot get {spec} from timm ({reason}); without a network, save the state_dict elsewhere and "
            "give that file"
        ) from error
    state: State = dict(model.state_dict())
    return Source(spec, [state], {"arch": arch_of_timm(name)}, _content_digest(state))


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Have the hub's library look into its cache alone where its host has no address.

    It would try five times otherwise, half a minute for each file it looks for, and warn of each. Behind a
    proxy, which finds addresses itself, it is left to try.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not getproxies().get("https"):
        try:
            socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _content_digest(state: State) -> str:
    """SHA-256 of names and tensors, for weights whose file the library does not name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

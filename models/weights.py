"""Weights from files into a backbone, matched keys counted: what did not load is an error.

Reads our checkpoints and `backbone.safetensors`, torchvision and timm weight files, and checkpoints of other
toolkits that hold the same network under a prefix.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..common.errors import UserError
from ..engine.checkpoint import find_damage
from .backbones.base import Backbone, Stem
from .backbones.build import build_backbone
from .backbones.resnet import RESNETS
from .batch_statistics import has_batchnorm

MATCH_REQUIRED = 0.95
# counters that old weight files (torchvision before 2018) lack and that no forward pass in eval mode reads
NOT_COUNTED = ("num_batches_tracked",)
# what a run folder's config.json or a file's metadata may say about the network
DESCRIPTION = ("arch", "stem", "image_size", "method")
# not files: random weights; what their BatchNorm gets is the evaluation's (see `batch_statistics`)
RANDOM = ("random", "random-untouched")

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """Where a backbone's weights come from and how much of the file matched."""

    spec: str  # as the user gave it
    kind: str  # random | random-untouched | supervised | file
    arch: str
    stem: str
    sha256: str  # of the file; of "random:<seed>" for random weights
    matched: int
    total: int
    prefix: str = ""
    method: str = ""

    @property
    def fraction(self) -> float:
        """Fraction of the backbone's tensors that the file gave."""
        return self.matched / self.total

    def line(self) -> str:
        """One line for the user: what matched."""
        if self.kind in RANDOM:
            return f"weights: random initialisation of {self.arch} (stem {self.stem})"
        under = f" under {self.prefix!r}" if self.prefix else ""
        return (
            f"weights: {self.matched} of {self.total} keys of {self.arch} (stem {self.stem}) matched "
            f"({self.fraction:.1%}){under} in {self.spec}"
        )

    def record(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**dataclasses.asdict(self), "fraction": round(self.fraction, 4)}


def load_backbone(
    spec: str,
    *,
    arch: str | None = None,
    image_size: int | None = None,
    stem: Stem | None = None,
    seed: int = 0,
) -> tuple[Backbone, WeightsInfo]:
    """Build the backbone that `spec` names and fill it.

    Args:
        spec: `random`, `random-untouched` (the same weights), a weight file, or `supervised:PATH` (the same
            file, named as the supervised row).
        arch: backbone's name; None takes it from the file (its metadata, the run's config.json beside it, or
            the shapes of its tensors).
        image_size: side of the images it will see, pixels; None takes the file's, else 224. Decides the grid
            of a ViT's positions, and a ResNet's stem when neither `stem` nor the file does.
        stem: as in `build_backbone`; None takes the file's, else the image size's.
        seed: of the random initialisation (only `random` depends on it).

    Returns:
        The backbone in eval mode on the CPU, and what matched.

    Raises:
        UserError: for a missing or unreadable file, an architecture that nobody names (random weights need
            one), or under 95 % of matched keys.
    """
    if spec in RANDOM:
        if arch is None:
            raise UserError(f"{spec} weights are of which network? Give --arch (such as resnet50)")
        backbone = _build(arch, image_size or 224, stem or "auto", seed)
        digest = hashlib.sha256(f"random:{seed}".encode()).hexdigest()
        total = len(_counted(backbone.export_state()))
        info = WeightsInfo(
            spec=spec,
            kind=spec if has_batchnorm(backbone) else "random",  # without BatchNorm there is one form
            arch=arch,
            stem=backbone.stem,
            sha256=digest,
            matched=total,
            total=total,
        )
        return backbone.eval(), info
    path = Path(spec.removeprefix("supervised:"))
    states, described = read_weights(path)
    arch = arch or described.get("arch") or _arch_of(states, path)
    stem = stem or described.get("stem") or "auto"
    backbone = _build(arch, image_size or int(described.get("image_size", 224)), stem, seed)
    matched, total, prefix = _fill(backbone, states, path, arch)
    info = WeightsInfo(
        spec=spec,
        kind="supervised" if spec.startswith("supervised:") else "file",
        arch=arch,
        stem=backbone.stem,
        sha256=file_hash(path),
        matched=matched,
        total=total,
        prefix=prefix,
        method=str(described.get("method", "")),
    )
    return backbone.eval(), info


def describe_weights(path: Path) -> dict[str, Any]:
    """The network that a weight file is of: `arch`, and `stem`, `image_size`, `method` as far as known.

    Raises:
        UserError: as `load_backbone`.
    """
    states, described = read_weights(path)
    return {**described, "arch": described.get("arch") or _arch_of(states, path)}


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
        UserError: if the file is missing, is a folder, holds other things than tensors, or is broken.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; give the weight file in it, such as {path}/backbone.safetensors"
        )
    if not path.is_file():
        raise UserError(f"no weight file {path}; give a file, `random`, or `supervised:FILE`")
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
        return load_file(path), {key: metadata[key] for key in DESCRIPTION if key in metadata}
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
                found = {key: holder[key] for key in DESCRIPTION if isinstance(holder.get(key), str | int)}
                described = {**found, **described}
    return content, described


def _beside(path: Path) -> dict[str, Any]:
    """What the config.json of the run folder says, if the file lies in one."""
    config = path.parent / "config.json"
    if not config.is_file():
        return {}
    try:
        content = json.loads(config.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{config} is no JSON ({error}); mend it or move the weight file out") from error
    holder = content.get("settings", content) if isinstance(content, dict) else {}
    return {key: holder[key] for key in DESCRIPTION if isinstance(holder.get(key), str | int)}


def _states(content: Any) -> list[State]:
    """Every dictionary of named tensors inside `content`, outermost first, two levels deep."""
    if not isinstance(content, Mapping):
        return []
    own = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    inner = [state for value in content.values() for state in _states(value)]
    return ([own] if own else []) + inner


def _counted(state: State) -> State:
    """The tensors that count as weights."""
    return {name: value for name, value in state.items() if not name.endswith(NOT_COUNTED)}


def _build(arch: str, image_size: int, stem: str, seed: int) -> Backbone:
    """Build with a random initialisation that depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_backbone(arch, image_size=image_size, stem=stem)


def _prefixes(state: State, reference: State) -> list[str]:
    """Prefixes under which `state` may hold the reference's tensors, shortest first."""
    probes = list(reference)[:1] + list(reference)[-1:]
    found = {name[: -len(probe)]: None for probe in probes for name in state if name.endswith(probe)}
    return sorted(found, key=len)


def _best_match(states: list[State], reference: State) -> tuple[dict[str, Tensor], str]:
    """The most complete set of tensors of the reference's names and shapes, and the prefix it lies under.

    Of equally complete ones the shortest prefix wins, then the first in the file: `backbone.` before
    `momentum.backbone.`, MoCo's `encoder_q.` before `encoder_k.`.
    """
    best: dict[str, Tensor] = {}
    best_prefix = ""
    for state in states:
        for prefix in _prefixes(state, reference):
            match = {
                name: state[prefix + name]
                for name, value in reference.items()
                if prefix + name in state and state[prefix + name].shape == value.shape
            }
            if len(match) > len(best):
                best, best_prefix = match, prefix
    return best, best_prefix


def _fill(backbone: Backbone, states: list[State], path: Path, arch: str) -> tuple[int, int, str]:
    """Copy the best match into the backbone; give matched, total and prefix."""
    _, prefix = _best_match(states, backbone.export_state())
    # a ViT resamples positions and drops a norm that the file lacks
    states = [backbone.adapt(_under(state, prefix)) for state in states]
    reference = backbone.export_state()
    match, rest = _best_match(states, reference)
    prefix = prefix or rest
    matched, total = len(_counted(match)), len(_counted(reference))
    if matched < MATCH_REQUIRED * total:
        raise UserError(_mismatch(match, reference, states, path, arch))
    broken = [name for name, value in match.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{path}: {broken[0]} holds numbers that are not finite; the run that made it diverged"
        )
    with torch.no_grad():
        for name, value in match.items():
            reference[name].copy_(value)
    after = backbone.export_state()
    for name, value in match.items():  # the copy must have reached the network, not a clone of its weights
        assert torch.equal(after[name], value.to(after[name].dtype)), name
    return matched, total, prefix


def _under(state: State, prefix: str) -> State:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _mismatch(match: State, reference: State, states: list[State], path: Path, arch: str) -> str:
    """Error text for a file that does not hold the backbone."""
    missing = [name for name in _counted(reference) if name not in match]
    total = len(_counted(reference))
    largest = max(states, key=len)
    offered = list(largest)
    return (
        f"{path}: only {total - len(missing)} of {total} keys of {arch} matched "
        f"({1 - len(missing) / total:.1%}; at least {MATCH_REQUIRED:.0%} are needed). "
        f"Missing or of another shape: {', '.join(missing[:3])}. The file has: {', '.join(offered[:3])}. "
        "Give the file of this architecture, or its right --arch"
    )


def _arch_of(states: list[State], path: Path) -> str:
    """Name the ResNet whose tensors, names and shapes, the file holds completely."""
    for arch in RESNETS:
        with torch.device("meta"):
            reference = _counted(build_backbone(arch, image_size=224, stem="imagenet").export_state())
        match, _ = _best_match(states, reference)
        deeper = f"layer3.{_blocks(reference, 'layer3')}.conv1.weight"
        if len(match) == len(reference) and not any(
            name.endswith(deeper) for state in states for name in state
        ):
            return arch
    raise UserError(f"{path} does not say which backbone it holds; give --arch (such as resnet50)")


def _blocks(reference: State, layer: str) -> int:
    """Residual blocks in a layer."""
    return len({name.split(".")[1] for name in reference if name.startswith(f"{layer}.")})

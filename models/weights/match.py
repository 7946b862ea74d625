"""Which tensors of a file are a backbone's: names under a prefix, shapes, and the copy into the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.errors import UserError
from ..backbones.base import Backbone
from .read import State

MATCH_REQUIRED = 0.95
# counters that old weight files (torchvision before 2018) lack and that no forward pass in eval mode reads
NOT_COUNTED = ("num_batches_tracked",)


def counted(state: State) -> State:
    """The tensors that count as weights."""
    return {name: value for name, value in state.items() if not name.endswith(NOT_COUNTED)}


def _prefixes(state: State, reference: State) -> list[str]:
    """Prefixes under which `state` may hold the reference's tensors, shortest first."""
    probes = list(reference)[:1] + list(reference)[-1:]
    found = {name[: -len(probe)]: None for probe in probes for name in state if name.endswith(probe)}
    return sorted(found, key=len)


def best_match(states: list[State], reference: State) -> tuple[dict[str, Tensor], str]:
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


@dataclass(frozen=True)
class Match:
    """How much of a backbone a file gave."""

    matched: int
    total: int
    prefix: str
    missing: tuple[str, ...]  # names that keep their initialisation


def fill(backbone: Backbone, states: list[State], place: str, arch: str) -> Match:
    """Copy the best match into the backbone.

    Args:
        backbone: changed in place.
        states: dictionaries of tensors, outermost first.
        place, arch: for messages.

    Raises:
        UserError: under 95 % of matched keys, or for numbers that are not finite.
    """
    _, prefix = best_match(states, backbone.export_state())
    # a ViT resamples positions and drops a norm that the file lacks
    states = [backbone.adapt(_under(state, prefix)) for state in states]
    reference = backbone.export_state()
    match, rest = best_match(states, reference)
    prefix = prefix or rest
    missing = tuple(name for name in counted(reference) if name not in match)
    total = len(counted(reference))
    if len(missing) > (1 - MATCH_REQUIRED) * total:
        raise UserError(_mismatch(missing, total, states, place, arch))
    broken = [name for name, value in match.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{place}: {broken[0]} holds numbers that are not finite; the run that made it diverged"
        )
    with torch.no_grad():
        for name, value in match.items():
            reference[name].copy_(value)
    after = backbone.export_state()
    for name, value in match.items():  # the copy must have reached the network, not a clone of its weights
        assert torch.equal(after[name], value.to(after[name].dtype)), name
    return Match(total - len(missing), total, prefix, missing)


def _under(state: State, prefix: str) -> State:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _mismatch(missing: tuple[str, ...], total: int, states: list[State], place: str, arch: str) -> str:
    """Error text for a file that does not hold the backbone."""
    largest = max(states, key=len)
    offered = list(largest)
    return (
        f"{place}: only {total - len(missing)} of {total} keys of {arch} matched "
        f"({1 - len(missing) / total:.1%}; at least {MATCH_REQUIRED:.0%} are needed). "
        f"Missing or of another shape: {', '.join(missing[:3])}. The file has: {', '.join(offered[:3])}. "
        "Give the file of this architecture, or its right --arch"
    )

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
    states = [backbone.adapt(_inflated(_under(state, prefix), backbone)) for state in states]
    reference = backbone.export_state()
    match, rest = best_match(states, reference)
    prefix = prefix or rest
    missing = tuple(name for name in counted(reference) if name not in match)
    total = len(counted(reference))
    if len(missing) > (1 - MATCH_REQUIRED) * total:
        raise UserError(_mismatch(missing, total, states, place, arch))
    _check_channels(missing, reference, states, place)
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


def _inflated(state: State, backbone: Backbone) -> State:
    """Make first convolutions of RGB weights fit a backbone of other channels.

    Filters are repeated over the channels and scaled by 3 / channels, or summed for one (timm's
    `adapt_input_conv`), so that channels of the same values give what they gave.
    """
    channels, own = backbone.in_channels, backbone.export_state()
    if channels == 3:
        return state
    from timm.models import adapt_input_conv  # takes seconds to import

    def is_first(name: str, value: Tensor) -> bool:
        other = own.get(name)
        both = other is not None and other.ndim == value.ndim == 4
        return both and value.shape[1] == 3 and own[name].shape[1] == channels

    return {
        name: adapt_input_conv(channels, value) if is_first(name, value) else value
        for name, value in state.items()
    }


def _check_channels(missing: tuple[str, ...], reference: State, states: list[State], place: str) -> None:
    """Refuse the right network's weights for images of other channels: the first layer would stay random."""
    for name in missing:
        own = reference[name].shape
        for stored in (state[name].shape for state in states if name in state):
            if len(own) == len(stored) == 4 and own[0] == stored[0] and own[2:] == stored[2:]:
                raise UserError(
                    f"{place} is of images of {stored[1]} channels, and in_channels is {own[1]}; only "
                    "weights of 3 channels fit any other number"
                )


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

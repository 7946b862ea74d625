"""What a user sets of a comparison, and the request of each of its evaluations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from ...common.config import Settings
from ...common.errors import UserError, did_you_mean
from ...models.weights import RANDOM, describe_weights
from ...pretrain.config.settings import ImageSize, Seed
from ..measure import check_weights
from ..report.output import readable_name
from ..settings import Request, choose, parameters

LabelFraction = Annotated[float, Field(gt=0, le=1)]
MOST = 50  # initialisations or fractions; no page shows more
SEED_MARK = "{seed}"  # in weights: a run for each seed


class CompareSettings(Settings):
    """Which initialisations, label fractions and seeds are compared, and how each is measured."""

    initialisations: dict[str, str]  # name -> weights, in the order given
    against: str = ""  # name of the reference
    fractions: Annotated[tuple[LabelFraction, ...], Field(min_length=1, max_length=MOST)]
    seeds: int = Field(default=3, ge=1, le=1000)
    first_seed: Seed = 0
    budget_hours: float | None = Field(default=None, ge=0, le=1e6)
    protocol: str
    changes: dict[str, str] = Field(default_factory=dict)  # --set
    arch: str | None = None
    stem: str | None = None
    image_size: ImageSize | None = None

    @model_validator(mode="after")
    def _check_reference(self) -> CompareSettings:
        """Refuse a comparison with nothing, or with a name that is not there."""
        names = list(self.initialisations)
        if not 2 <= len(names) <= MOST:
            raise ValueError(
                f"compare 2 to {MOST} initialisations, such as `random runs/first`, not {len(names)}"
            )
        if self.against and self.against not in names:
            hint = did_you_mean(self.against, names) or f"; choose one of {', '.join(names)}"
            raise ValueError(f"--against {self.against}: no initialisation has that name{hint}")
        if not self.against and RANDOM[0] not in names:
            raise ValueError(f"compared with what? Add `random`, or give --against ({', '.join(names)})")
        if self.arch is None and all(weights in RANDOM for weights in self.initialisations.values()):
            raise ValueError("random weights are of which network? Give --arch (such as resnet50)")
        if len(set(self.fractions)) < len(self.fractions):
            raise ValueError("--fractions names one twice; leave it out")
        return self

    @property
    def reference(self) -> str:
        """The initialisation that the others are held against."""
        return self.against or RANDOM[0]

    @property
    def others(self) -> list[str]:
        """The initialisations that are held against the reference."""
        return [name for name in self.initialisations if name != self.reference]

    def weights(self, name: str, seed: int) -> str:
        """The weights of an initialisation for a seed; `{seed}` in them stands for its number."""
        return self.initialisations[name].replace(SEED_MARK, str(seed))

    def pretrained_once(self) -> list[str]:
        """Initialisations whose weights are the same for every seed."""
        fixed = self.initialisations.items()
        return [name for name, text in fixed if text not in RANDOM and SEED_MARK not in text]

    def request(self, name: str, seed: int) -> Request:
        """The evaluation of a cell; random weights take the network of the first that are not random."""
        trained = [other for other, text in self.initialisations.items() if text not in RANDOM]
        weights = self.weights(name, seed)
        return Request(
            weights=weights,
            protocol=self.protocol,
            changes=self.changes,
            like=self.weights(trained[0], seed) if trained and weights in RANDOM else None,
            arch=self.arch,
            stem=self.stem,
            image_size=self.image_size,
            seed=seed,
        )


def check_request(settings: CompareSettings, protocols: Mapping[str, Settings]) -> str:
    """Refuse a protocol, parameters or weights that cannot be, before any data is read.

    Returns:
        A line that says how cells are measured.

    Raises:
        UserError: for an unknown protocol or parameter, a file that is not there, or random weights of no
            network.
    """
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    requests = [settings.request(name, seed) for name in settings.initialisations for seed in seeds]
    protocol = parameters(choose(protocols, requests[0]))
    for request in {request.weights: request for request in requests}.values():
        check_weights(request)
    budget = f"{protocol['steps']} steps of {protocol['batch_size']} images in every cell"
    return f"measured by {settings.protocol}: {budget}, whatever the label fraction"


def described_networks(settings: CompareSettings) -> dict[str, str]:
    """The network of each initialisation that is not random, as far as its weights tell it before loading."""
    found = {}
    for name, text in settings.initialisations.items():
        if text not in RANDOM:
            told = describe_weights(settings.weights(name, settings.first_seed))
            arch = settings.arch or told.get("arch") or "a network that it does not name"
            stem = settings.stem or told.get("stem") or "by the size of the input"
            found[name] = f"{arch} (stem {stem})"
    return found


def differing_networks(networks: Mapping[str, str]) -> list[str]:
    """A warning where initialisations are of different networks or stems; none where they are alike."""
    names: dict[str, list[str]] = {}
    for name, network in networks.items():
        names.setdefault(network, []).append(name)
    if len(names) < 2:
        return []
    which = "; ".join(f"{network}: {', '.join(those)}" for network, those in names.items())
    return [
        f"the initialisations are of different networks ({which}), so a difference is of network and weights "
        "together; give weights of one network, and --stem where only the stem differs"
    ]


def named_initialisations(texts: Sequence[str]) -> dict[str, str]:
    """NAME=WEIGHTS texts, or weights alone, whose name is then the run folder's, the file's or the hub's.

    Raises:
        UserError: for a name that is given twice, is empty, or could not name a file.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, mark, weights = text.partition("=")
        if not mark or Path(text).exists():
            name, weights = _name_of(text), text
        if not re.fullmatch(r"[\w.:+@-]([\w.:+@ -]{0,78}[\w.:+@-])?", name) or not weights:
            raise UserError(
                f"initialisation {text!r}: give NAME=WEIGHTS, the name of letters, digits and . : + @ - _"
            )
        if name in found:
            raise UserError(
                f"{weights} and {found[name]} are both called {name}; name one of them, as in other={weights}"
            )
        found[name] = weights
    return found


def _name_of(weights: str) -> str:
    """A name for weights that were given without one."""
    hub = weights.startswith(("torchvision:", "timm:")) and not Path(weights).exists()
    return weights.replace("/", "_") if hub else readable_name(weights.replace(SEED_MARK, "N"))


def parse_fractions(text: str) -> tuple[float, ...]:
    """`0.05,0.25,1` as numbers, the smallest first.

    Raises:
        UserError: for what is no fraction.
    """
    advice = "give fractions of the labelled images above 0 and up to 1, such as 0.05,0.25,1"
    try:
        found = sorted(float(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"--fractions {text}: {advice}") from error
    if not all(0 < fraction <= 1 for fraction in found):
        raise UserError(f"--fractions {text}: {advice}")
    return tuple(found)


def per_cent(fraction: float) -> str:
    """A fraction as `5 %` or `0.5 %`."""
    return f"{100 * fraction:.4g} %"


def as_json(settings: CompareSettings) -> dict[str, Any]:
    """The settings as JSON has them, with the reference's name."""
    return settings.model_dump(mode="json") | {"against": settings.reference}

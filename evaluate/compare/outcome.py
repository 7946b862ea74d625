"""A comparison as it stands: what was measured and found, what must be said with it, and what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import UserError
from ...engine.loggers.run_files import read_metrics
from .design import Cell
from .labels import LabelledSet
from .resampling import can_resample, draw_test_images, paired_interval, resampled
from .run import Measured
from .settings import CompareSettings, differing_networks, per_cent
from .statistics import Seeds
from .verdict import Finding, Interval, TestImages, correction_words, findings, sentence

FEW_NAMES = 6  # classes that a warning names; more are counted


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a report is made of.

    `images` are the labelled images of each fraction and `available` all there are, `absent` the classes that
    no image of a fraction and seed has, `left` the number of cells that were not measured, `command` what
    makes and continues it.
    """

    settings: CompareSettings
    measured: dict[Cell, Measured]
    left: int
    findings: list[Finding]
    images: dict[float, int]
    available: int
    absent: dict[tuple[float, int], list[str]]
    command: str

    @property
    def example(self) -> dict[str, Any]:
        """A result; its protocol, parameters and test data are those of all."""
        return next(iter(self.measured.values())).result

    @property
    def headline(self) -> str:
        """The metric's name in the result files."""
        return str(self.example["headline"])

    def of(self, name: str, fraction: float | None = None) -> list[Measured]:
        """The measured cells of an initialisation, by seed."""
        return [
            self.measured[cell]
            for cell in sorted(self.measured)
            if cell.initialisation == name and fraction in (None, cell.fraction)
        ]

    def verdicts(self) -> list[str]:
        """A sentence for each initialisation that is held against the reference."""
        by_name: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_name.setdefault(finding.initialisation, []).append(finding)
        return [sentence(found, self.headline) for found in by_name.values()]

    def remarks(self) -> list[str]:
        """How far the verdicts reach."""
        return [correction_words(self.findings), *_pretraining_remark(self)]

    def warnings(self) -> list[str]:
        """What is missing or not alike."""
        found = []
        if self.left:
            total = len(self.measured) + self.left
            found.append(f"{self.left} of {total} cells are not measured; the same command goes on")
        return [*found, *_network_warnings(self), *_absence_warnings(self)]


def compare_measured(
    settings: CompareSettings,
    labelled: LabelledSet,
    measured: Mapping[Cell, Measured],
    *,
    left: int,
    command: str,
) -> Comparison:
    """Compare what was measured, at least one cell."""
    values: dict[tuple[str, float], dict[int, float]] = {}
    for cell, found in measured.items():
        values.setdefault((cell.initialisation, cell.fraction), {})[cell.seed] = found.value
    shared: dict[tuple[str, float], Seeds] = dict(values)
    drawn = {(cell.fraction, cell.seed) for cell in measured}
    return Comparison(
        settings=settings,
        measured=dict(measured),
        left=left,
        findings=findings(settings, shared, _over_test_images(settings, measured)),
        images={fraction: labelled.images(fraction) for fraction in settings.fractions},
        available=len(labelled.train),
        absent={(fraction, seed): labelled.absent(fraction, seed) for fraction, seed in sorted(drawn)},
        command=command,
    )


def _over_test_images(settings: CompareSettings, measured: Mapping[Cell, Measured]) -> TestImages:
    """The interval of a difference over the test images of one seed."""
    scores: dict[Cell, np.ndarray | None] = {}

    def score(cell: Cell) -> np.ndarray | None:
        """The headline of each resample; kept, for the reference is compared with several."""
        if cell not in scores:
            found = measured[cell]
            per_image, headline = found.per_image(), str(found.result["headline"])
            images = int(found.result["data"]["test"]["images"])
            usable = images > 1 and can_resample(per_image, headline)
            draws = draw_test_images(images, cell.seed)
            scores[cell] = resampled(per_image, headline, draws) if usable else None
        return scores[cell]

    def interval(name: str, fraction: float, seed: int) -> Interval | None:
        first, second = (score(Cell(seed, fraction, each)) for each in (name, settings.reference))
        return None if first is None or second is None else paired_interval(first, second)

    return interval


def _pretraining_remark(comparison: Comparison) -> list[str]:
    """That one pretraining run is one, however many seeds were measured on it."""
    names = comparison.settings.pretrained_once()
    if not names:
        return []
    return [
        f"{', '.join(names)}: the same weights for every seed. The intervals are over label subsets, order "
        "and new layers; what another pretraining run would give is not in them (weights with {seed} in "
        "their name, such as runs/first-{seed}, take a run for each seed)."
    ]


def _network_warnings(comparison: Comparison) -> list[str]:
    """That initialisations are of different networks or stems, where they are."""
    networks = {}
    for name in comparison.settings.initialisations:
        for found in comparison.of(name)[:1]:
            weights = found.result["weights"]
            networks[name] = f"{weights['arch']} (stem {weights['stem']})"
    return differing_networks(networks)


def _absence_warnings(comparison: Comparison) -> list[str]:
    """Which classes nothing could be learnt of, by fraction and seed."""
    found = []
    for (fraction, seed), names in comparison.absent.items():
        if names:
            shown = ", ".join(names) if len(names) <= FEW_NAMES else f"{len(names)} classes"
            found.append(
                f"at {per_cent(fraction)} of the labels, seed {seed}, no image shows {shown}: no "
                "initialisation can learn that there"
            )
    return found


def pretraining_hours(settings: CompareSettings, name: str) -> float | None:
    """Hours of the run that weights come from, the mean over seeds; None where no run's log tells them."""
    hours = []
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        path = Path(settings.weights(name, seed).removeprefix("supervised:"))
        if path.exists():
            hours.append(_logged_seconds(path if path.is_dir() else path.parent) / 3600)
    return statistics.fmean(hours) if any(hours) else None


def _logged_seconds(folder: Path) -> float:
    """What the lines of a run's log add up to; 0 without one, or with one that cannot be read any more."""
    try:
        return sum(line.get("seconds", 0.0) for line in read_metrics(folder))
    except UserError:  # the comparison does not hang on it
        return 0.0

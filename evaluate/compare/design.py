"""Which cells a comparison has, in which order they run, and which labelled images each of them learns from.

Label subsets are drawn by the seed alone, image by image and nested: the images of 5 % are among those of
25 %, and every initialisation of a seed learns from the same ones.
Shape legend: N labelled training images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...common.randomness import counter_generator
from .settings import CompareSettings


@dataclass(frozen=True, order=True)
class Cell:
    """One run: an initialisation, a fraction of the labels, a seed."""

    seed: int
    fraction: float
    initialisation: str


def cells(settings: CompareSettings) -> Iterator[Cell]:
    """All cells in the order in which they run.

    All initialisations of one fraction and seed come before the next fraction, all fractions before the next
    seed: wherever the time ends, all but one pair of (fraction, seed) can be compared.
    """
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        for fraction in settings.fractions:
            for name in settings.initialisations:
                yield Cell(seed, fraction, name)


def label_order(presence: np.ndarray, seed: int) -> np.ndarray:
    """The order in which images get their labels, (N,); a fraction takes its beginning.

    It is a random permutation in which every image that brings a class not seen before comes first. So the
    beginning holds every class that can be had, is the plain random draw wherever that holds them already,
    and depends on nothing but the seed and the labels: another fraction moves no image of the others.

    Args:
        presence: (N, K) bool, the classes in each image.
        seed: of the draw.
    """
    drawn = counter_generator(seed, 0, 0, 0, "label_fraction").permutation(len(presence))
    seen = np.zeros(presence.shape[1], bool)
    first = np.zeros(len(drawn), bool)
    for place, image in enumerate(drawn):
        first[place] = (presence[image] & ~seen).any()
        seen |= presence[image]
    return np.concatenate([drawn[first], drawn[~first]])


def images_of(fraction: float, images: int) -> int:
    """How many of so many images a fraction is, at least one."""
    return max(1, round(fraction * images))


def label_subset(presence: np.ndarray, fraction: float, seed: int) -> list[int]:
    """The images of a fraction, sorted."""
    order = label_order(presence, seed)
    return sorted(int(image) for image in order[: images_of(fraction, len(presence))])


def classes_absent(presence: np.ndarray, subset: list[int]) -> list[int]:
    """Classes that some labelled image has and none of the subset."""
    return [int(label) for label in np.flatnonzero(presence.any(0) & ~presence[subset].any(0))]

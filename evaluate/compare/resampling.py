"""The spread that the test images alone give a difference: both sides of a seed on test images drawn again.

Training stays as it is; the test set is drawn with replacement, the same draw for both sides (a paired
bootstrap with percentile intervals; Efron and Tibshirani, 1993). It says how much hangs on which images were
tested and nothing of another seed, so it decides nothing and stands beside the interval over seeds.
Shape legend: N test images, K classes, R resamples.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ...common.atomic_files import atomic_write
from ...common.errors import UserError
from ...common.randomness import counter_generator
from ..detection.matches import THRESHOLDS_OF, average_precision
from ..segmentation.miou import miou_of_counts

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)

PerImage = dict[str, np.ndarray]  # what each test image adds to the headline: `Outcome.per_image`


def can_resample(per_image: PerImage, headline: str) -> bool:
    """Whether the headline can be computed from what each test image adds."""
    return ("counts" in per_image and headline == "miou") or (
        "hit" in per_image and headline in THRESHOLDS_OF
    )


def draw_test_images(images: int, seed: int) -> np.ndarray:
    """How often each test image is drawn in each resample, (R, N); the same for every initialisation."""
    generator = counter_generator(seed, 0, 0, 0, "test_images")
    return generator.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)


def resampled(per_image: PerImage, headline: str, weights: np.ndarray) -> np.ndarray:
    """The headline of each resample, (R,), in [0, 1].

    Args:
        per_image: of one evaluation.
        headline: `miou`, or `ap`, `ap50`, `ap75`; see `can_resample`.
        weights: (R, N) of `draw_test_images`.
    """
    if "counts" in per_image:
        counts = per_image["counts"]
        summed = weights.astype(float) @ counts.reshape(len(counts), -1).astype(float)
        return miou_of_counts(summed.reshape(len(weights), *counts.shape[1:]))
    return average_precision(per_image, headline, weights)


def paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of first minus second, resampled with the same draws, (R,) each."""
    low, high = np.percentile(first - second, PERCENTILES)
    return float(low), float(high)


def write_per_image(per_image: PerImage, path: Path) -> None:
    """Write what each test image adds, whole or not at all."""
    with atomic_write(path) as part, open(part, "wb") as opened:
        np.savez_compressed(opened, **per_image)  # type: ignore[arg-type]


def read_per_image(path: Path) -> PerImage:
    """Read what `write_per_image` wrote; empty where the file is not there.

    Raises:
        UserError: for a damaged file.
    """
    if not path.exists():
        return {}
    try:
        with open(path, "rb") as opened, np.load(opened) as stored:
            return dict(stored)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and its .json, and compare again") from error

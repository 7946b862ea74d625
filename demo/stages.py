"""The parts of the demo between image folder and report: each calls the function behind a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..common.atomic_files import atomic_write
from ..common.page import encode_image
from ..common.terminal.progress import Totals, show_totals
from ..data.masks.reader import MaskReader
from ..engine.loggers.run_files import read_metrics
from ..maskgen.building.build import build_masks
from ..maskgen.inspection.score import Scores, score_masks
from ..pretrain.config.resolve import resolve
from ..pretrain.config.settings import RunSettings
from ..pretrain.train import pretrain
from .folder import Folder
from .gallery import gallery, shown_pictures, side_by_side

Bar = Callable[[str], AbstractContextManager[Totals]]
# the gallery's halves, photographs and collages; (H, W, 3)
Drawn = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class Run:
    """The short pretraining run."""

    folder: Path
    settings: RunSettings
    metrics: list[dict[str, float]]  # one line per logged step


def find_masks(pictures: Folder, out: Path, bar: Bar = show_totals) -> tuple[int, int]:
    """Build the mask file; gives the number of masks and the size of the file in bytes."""
    with bar("masks") as progress:
        summary = build_masks(pictures.images, out, progress=progress)
    return summary.images - len(summary.failures), out.stat().st_size


def score(pictures: Folder, masks: Path) -> Scores:
    """Score the masks against the truth, at the truth's size."""
    return score_masks(masks, pictures.truth)


def mean_iou(scores: Scores, names: Sequence[str]) -> float:
    """Give the mean intersection over union of these pictures."""
    return float(np.mean([scores.images[name]["iou"] for name in names]))


def save_gallery(pictures: Folder, masks: Path, out: Path, scores: Scores) -> Drawn:
    """Save the gallery as PNG, photographs left and collages right; give the two halves, (H, W, 3) uint8."""
    overlaps = {name: values["iou"] for name, values in scores.images.items()}
    reader = MaskReader(masks)
    photographs, collages = (gallery(pictures, reader, names, overlaps) for names in shown_pictures(pictures))
    with atomic_write(out) as part:
        part.write_bytes(encode_image(side_by_side(photographs, collages)))
    return photographs, collages


def pretrain_briefly(options: Mapping[str, object], recipe: str, overrides: Sequence[str]) -> Run:
    """Pretrain by a shipped recipe with these settings laid over it."""
    settings, _ = resolve(dict(options), recipe=recipe, overrides=overrides)
    result = pretrain(settings)
    if result.stopped_by is not None:  # Ctrl-C: the engine has saved a checkpoint and returned
        raise KeyboardInterrupt(result.stopped_by)
    return Run(result.folder, settings, list(read_metrics(result.folder)))

"""The image folder of `hapicl demo`: photographs and collages by class, and their true masks beside them.

images/<class>/<name>     photographs as shipped, collages as JPEG
truth/<class>/<name>.png  255 foreground, 0 background
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .collage import cutouts_by_label, make_collage
from .photographs import load_photographs


@dataclass(frozen=True)
class Folder:
    """What was written; paths of `photographs` and `collages` are relative to `images`."""

    images: Path
    truth: Path
    photographs: tuple[str, ...]
    collages: tuple[str, ...]
    labels: tuple[str, ...]
    credits: dict[str, str]


def build_folder(out: Path, *, per_class: int, seed: int, with_photographs: bool = True) -> Folder:
    """Write the image folder; what stood at `out/images` and `out/truth` is replaced.

    Args:
        out: folder to write into.
        per_class: collages for each class of objects.
        seed: of the collages; the same seed gives the same pictures, and a larger `per_class` adds to them.
        with_photographs: False: collages only.

    Raises:
        UserError: if an installed package lacks a photograph.
    """
    photographs = load_photographs()
    images, truth = out / ".images.part", out / ".truth.part"
    for folder in (images, truth):
        shutil.rmtree(folder, ignore_errors=True)
    originals = []
    for photograph in photographs.values():
        if photograph.outlines and with_photographs:
            name = f"{photograph.outlines[0].label}/{photograph.name}"
            _copy(photograph.path, images / name)
            _save_truth(photograph.truth(), truth / name)
            originals.append(name)
    collages = []
    cutouts = cutouts_by_label(list(photographs.values()))
    for position, (label, choices) in enumerate(cutouts.items()):
        for count in range(per_class):
            number = count * len(cutouts) + position
            collage = make_collage(number, choices, list(photographs.values()), seed=seed)
            name = f"{label}/collage_{count:03d}.jpg"
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(collage.image).save(images / name, quality=92)
            _save_truth(collage.truth, truth / name)
            collages.append(name)
    # both folders get their names only when they are complete
    for part, name in ((images, "images"), (truth, "truth")):
        shutil.rmtree(out / name, ignore_errors=True)
        part.rename(out / name)
    return Folder(
        images=out / "images",
        truth=out / "truth",
        photographs=tuple(sorted(originals)),
        collages=tuple(sorted(collages)),
        labels=tuple(sorted({name.split("/")[0] for name in [*originals, *collages]})),
        credits={photograph.name: photograph.credit for photograph in photographs.values()},
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _save_truth(mask: NDArray[np.bool_], image_name: Path) -> None:
    """Write a mask under its image's name, with the suffix of a PNG."""
    target = image_name.with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(target)

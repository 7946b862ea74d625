"""Make docs/images/masks.png, and demo.png from a finished demo; run from the repository's root.

    .venv/bin/python docs/make_pictures.py demo-output

Only photographs that anyone may publish are shown: public domain, CC0, or without known restrictions. Which
ones follows from their names, not from how good their masks are.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from hapicl.common.atomic_files import atomic_write
from hapicl.common.page import encode_image
from hapicl.data.masks.reader import MaskReader
from hapicl.demo.collage import cutouts_by_label, make_collage
from hapicl.demo.folder import build_folder
from hapicl.demo.gallery import gallery, side_by_side
from hapicl.demo.learning import feature_pictures
from hapicl.demo.photographs import load_photographs
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.inspection.score import score_masks
from hapicl.models.weights import load_backbone

PHOTOGRAPHS = ("astronaut/astronaut.png", "cat/chelsea.png", "cup/coffee.png", "coin/coins.png")
COLLAGES = ("astronaut", "cat", "cup", "shuttle")
NOT_FREE = {"motorcycle_left.png", "flower.jpg", "china.jpg"}
SEED, UNSEEN = 0, 1  # of the demo's collages
OUT = Path(__file__).parent / "images"


def first_free_collages(per_class: int, seed: int) -> list[str]:
    """Name the first collage of each class whose background may be published."""
    photographs = list(load_photographs().values())
    cutouts = cutouts_by_label(photographs)
    names = []
    for label in COLLAGES:
        position = list(cutouts).index(label)
        for count in range(per_class):
            number = count * len(cutouts) + position
            collage = make_collage(number, cutouts[label], photographs, seed=seed)
            if collage.background not in NOT_FREE:
                names.append(f"{label}/collage_{count:03d}.jpg")
                break
    return names


def draw_masks() -> None:
    """Build a folder, find its masks, and draw the chosen ones."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures = build_folder(folder, per_class=4, seed=SEED)
        build_masks(pictures.images, folder / "masks.h5")
        scores = score_masks(folder / "masks.h5", pictures.truth)
        overlaps = {name: values["iou"] for name, values in scores.images.items()}
        reader = MaskReader(folder / "masks.h5")
        left, right = (
            gallery(pictures, reader, names, overlaps)
            for names in (PHOTOGRAPHS, first_free_collages(4, SEED))
        )
    with atomic_write(OUT / "masks.png") as part:
        part.write_bytes(encode_image(side_by_side(left, right)))


def draw_learning(demo: Path) -> None:
    """Draw unseen collages with their features before and after the training of a finished demo."""
    weights = str(demo / "run" / "backbone.safetensors")
    trained, info = load_backbone(weights)
    untrained, _ = load_backbone("random", arch=info.arch, stem=info.stem)
    drawn = feature_pictures(
        (untrained, trained), demo / "unseen" / "images", first_free_collages(10, UNSEEN)
    )
    left, right = (np.concatenate(half) for half in (drawn[::2], drawn[1::2]))
    gap = np.full((len(left), 8, 3), 255, np.uint8)
    with atomic_write(OUT / "demo.png") as part:
        part.write_bytes(encode_image(np.concatenate([left, gap, right], axis=1)))


if __name__ == "__main__":
    draw_masks()
    for place in sys.argv[1:]:
        draw_learning(Path(place))

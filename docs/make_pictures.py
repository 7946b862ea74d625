"""Make docs/images/masks.png: run from the repository's root as `.venv/bin/python docs/make_pictures.py`.

Only photographs that anyone may publish are shown: public domain, CC0, or without known restrictions. Which
ones follows from their names, not from how good their masks are.
"""

import tempfile
from pathlib import Path

from hapicl.common.atomic_files import atomic_write
from hapicl.common.page import encode_image
from hapicl.data.masks.reader import MaskReader
from hapicl.demo.collage import cutouts_by_label, make_collage
from hapicl.demo.folder import build_folder
from hapicl.demo.gallery import gallery, side_by_side
from hapicl.demo.photographs import load_photographs
from hapicl.demo.run import SEED
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.inspection.score import score_masks

PHOTOGRAPHS = ("astronaut/astronaut.png", "cat/chelsea.png", "cup/coffee.png", "coin/coins.png")
COLLAGES = ("astronaut", "cat", "cup", "shuttle")
NOT_FREE = {"motorcycle_left.png", "flower.jpg", "china.jpg"}
OUT = Path(__file__).parent / "images" / "masks.png"


def first_free_collages(per_class: int) -> list[str]:
    """Name the first collage of each class whose background may be published."""
    photographs = list(load_photographs().values())
    cutouts = cutouts_by_label(photographs)
    names = []
    for label in COLLAGES:
        position = list(cutouts).index(label)
        for count in range(per_class):
            number = count * len(cutouts) + position
            collage = make_collage(number, cutouts[label], photographs, seed=SEED)
            if collage.background not in NOT_FREE:
                names.append(f"{label}/collage_{count:03d}.jpg")
                break
    return names


def main() -> None:
    """Build a folder, find its masks, and draw the chosen ones."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures = build_folder(folder, per_class=4, seed=SEED)
        build_masks(pictures.images, folder / "masks.h5")
        scores = score_masks(folder / "masks.h5", pictures.truth)
        overlaps = {name: values["iou"] for name, values in scores.images.items()}
        reader = MaskReader(folder / "masks.h5")
        left, right = (
            gallery(pictures, reader, names, overlaps) for names in (PHOTOGRAPHS, first_free_collages(4))
        )
    with atomic_write(OUT) as part:
        part.write_bytes(encode_image(side_by_side(left, right)))


if __name__ == "__main__":
    main()

"""Small TIFF files of many bands: a bright block on noise, as `small_run.draw_images` has it, in 16 bits."""

import pathlib

import numpy as np
import tifffile

BANDS, LARGEST = 5, 5_000


def draw_tiffs(folder: pathlib.Path, count: int = 8, bands: int = BANDS) -> pathlib.Path:
    """A flat folder of images, 40 to 60 pixels a side; each band of the block has a brightness of its own."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        height, width = generator.integers(40, 61, 2)
        image = generator.integers(0, LARGEST // 4, (height, width, bands)).astype(np.uint16)
        top, left = generator.integers(4, 12, 2)
        image[top : top + height // 2, left : left + width // 2] = generator.integers(
            LARGEST // 2, LARGEST, bands
        )
        path = folder / f"image_{number:02d}.tif"
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig", compression="zlib")
    return folder

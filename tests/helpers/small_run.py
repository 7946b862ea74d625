"""The smallest real run: twelve made-up images, a mask file for them, ResNet-18 at 32 pixels."""

import pathlib

import numpy as np
from PIL import Image

from hapicl.data.images.decode import image_size
from hapicl.data.images.folder import find_images
from hapicl.data.masks.writer import pack_mask, write_masks

OPTIONS = {"arch": "resnet18", "image_size": 32, "batch_size": 4, "workers": 0, "device": "cpu", "steps": 4}
CONFIG = {"config": {"pixel_hidden": 16, "pixel_dim": 8, "queue_length": 8}}


def draw_images(folder: pathlib.Path, count: int = 12) -> pathlib.Path:
    """A flat folder of images, 40 to 70 pixels a side: a bright block on noise."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        height, width = generator.integers(40, 71, 2)
        image = generator.integers(0, 90, (height, width, 3), dtype=np.uint8)
        top, left = generator.integers(4, 12, 2)
        image[top : top + height // 2, left : left + width // 2] = generator.integers(150, 255, 3)
        Image.fromarray(image).save(folder / f"image_{number:02d}.png")
    return folder


def write_box_masks(images: pathlib.Path, out: pathlib.Path, *, border: int = 4) -> str:
    """A mask file whose masks are boxes, a `border`-th of the side away from every edge."""
    rows = []
    for path in find_images(images):
        height, width = image_size(images / path)
        mask = np.zeros((height, width), bool)
        mask[height // border : -height // border, width // border : -width // border] = True
        rows.append(pack_mask(path, mask, (height, width), confidence=0.9))
    write_masks(out, rows, {"image_root": str(images), "recipe": {"name": f"box {border}"}})
    return str(out)


def arguments(options: dict) -> list[str]:
    """Nested settings as the command line takes them."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                words += ["--set", f"{name}.{key}={inner}"]
        elif name in {"log_every", "checkpoint_every", "keep_every", "stem"}:
            words += ["--set", f"{name}={value}"]
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words

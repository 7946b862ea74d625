"""Tiny labelled data whose answer is known: colours as classes, halves as segments, squares as objects."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 60), "red": (200, 40, 30)}


def noisy(generator: np.random.Generator, colour: tuple[int, int, int], side: int = 40) -> np.ndarray:
    """A colour with noise, (side, side, 3) uint8."""
    values = np.asarray(colour) + generator.integers(-25, 26, (side, side, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def colour_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ (8 of each class) and test/ (4 of each class), class folders named after their colour."""
    root = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(noisy(generator, colour)).save(root / part / name / f"{name}{number}.png")
    return root


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and labels/: 12 pictures, left half dark (class 0), right bright (1), bottom rows void (9)."""
    root = tmp_path_factory.mktemp("halves")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    generator = np.random.default_rng(1)
    for number in range(12):
        image = np.concatenate(
            [noisy(generator, (40, 40, 40), 64)[:, :32], noisy(generator, (210, 200, 190), 64)[:, 32:]],
            axis=1,
        )
        labels = np.zeros((64, 64), np.uint8)
        labels[:, 32:] = 1
        labels[56:] = 9
        Image.fromarray(image).save(root / "images" / f"p{number}.png")
        Image.fromarray(labels).save(root / "labels" / f"p{number}.png")
    return root


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC layout of 16 pictures with one bright square each; splits train (12) and test (4)."""
    root = tmp_path_factory.mktemp("squares")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    generator = np.random.default_rng(2)
    for number in range(16):
        image = noisy(generator, (40, 40, 40), 64)
        top, left = generator.integers(4, 30, 2)
        image[top : top + 28, left : left + 28] = noisy(generator, (220, 210, 60), 28)
        Image.fromarray(image).save(root / "JPEGImages" / f"s{number}.jpg", quality=95)
        # VOC counts pixels from 1, both ends inside
        box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{left + 28}</xmax><ymax>{top + 28}</ymax>"
        entry = f"<object><name>square</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        (root / "Annotations" / f"s{number}.xml").write_text(f"<annotation>{entry}</annotation>")
    names = [f"s{number}" for number in range(16)]
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names[:12]) + "\n")
    (root / "ImageSets/Main/test.txt").write_text("\n".join(names[12:]) + "\n")
    return root

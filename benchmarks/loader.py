"""Samples a second and core of the whole input path: two 224 px views, with masks, from original JPEGs.

    python benchmarks/loader.py IMAGES --out benchmarks/results/loader.json

Ours: the loader's worker (read, decode once, two crops, redraw by the mask, occupancy, drawn rows) without
and with the photometric augmentation on the same core. Rivals, all on one core and on the same files: PIL +
torchvision v1 as MoCo ships it and lightly's MoCoV2Transform (no masks), torchvision v2 on tv_tensors and
lightly's DetConSTransform (masks as PNG files cropped along). All take turns in one process, with the same n
images in a round, each decoded once a sample; medians of rounds. The masks are built before, with the recipe
`fast`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import cv2
import lightly.transforms
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from hapicl.common.atomic_files import atomic_write
from hapicl.common.randomness import counter_generator
from hapicl.data.images.pack_build import PackSettings, pack_images
from hapicl.data.loading import photometric
from hapicl.data.loading.batch import Batch, Needs, ViewPolicy
from hapicl.data.loading.loader import Loader, LoaderOptions
from hapicl.data.masks.reader import MaskReader
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.building.settings import BuildSettings

NEEDS = Needs(views=(ViewPolicy(), ViewPolicy()), grid=7)
GOALS = {
    "samples/s/core, ours": 520,
    "times MoCo's and lightly's MoCo transform": 5,
    "times the mask-aware ones": 12,
    "samples/s/core, pack 320": 900,
}
SEED, BATCH = 0, 16
Run = Callable[[int], None]  # makes so many samples


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = _runs(arguments.images, Path(folder))
        rates = _take_turns(runs, arguments.rounds, arguments.samples)
    result = {
        "what": "samples per core-second (CPU time of one thread: other work on the machine falls out), "
        "two 224 px views; median of rounds, all in turn in one process",
        "images": f"{arguments.images.name}, {len(list(arguments.images.rglob('*.JPEG')))} files",
        "rounds": arguments.rounds,
        "samples_per_round": arguments.samples,
        "samples_per_second_per_core": {
            name: round(statistics.median(values), 1) for name, values in rates.items()
        },
        "fastest_round": {name: round(max(values), 1) for name, values in rates.items()},
        "ratio": _ratios(rates),
        "goals": GOALS,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "load_average": os.getloadavg()},
        "versions": {
            name: version(name)
            for name in ("torch", "torchvision", "lightly", "pillow", "numpy", "opencv-python-headless")
        }
        | {"python": platform.python_version()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        with atomic_write(arguments.out) as part:
            part.write_text(text + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of original JPEGs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=48, help="per round and pipeline")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _runs(images: Path, folder: Path) -> dict[str, Run]:
    """All pipelines by name, ready to run."""
    masks = folder / "masks.h5"
    build_masks(images, masks, "fast", BuildSettings(workers=1))
    pack = folder / "images.h5"
    pack_images(images, pack, PackSettings(short_side=320), workers=1)
    pngs = _masks_as_png(masks, folder / "png")
    paths = [images / path for path in MaskReader(masks).paths]
    moco = _moco()
    lightly_moco = lightly.transforms.MoCoV2Transform()
    detcon = lightly.transforms.DetConSTransform()
    torchvision_v2 = _torchvision_v2()
    return {
        "ours, originals": _ours(images, masks, augment=False),
        "ours, originals, photometric on the same core": _ours(images, masks, augment=True),
        "ours, pack of short side 320": _ours(pack, masks, augment=False),
        "PIL + torchvision v1 (MoCo), no masks": _each(paths, lambda path: _twice(moco, _pil(path))),
        "lightly MoCoV2Transform, no masks": _each(paths, lambda path: lightly_moco(_pil(path))),
        "torchvision v2 on tv_tensors, masks": _each(
            paths, lambda path: _twice(torchvision_v2, *_tensors(path, pngs[path]))
        ),
        "lightly DetConSTransform, masks": _each(paths, lambda path: detcon(_pil(path), _mask(pngs[path]))),
        "decode alone (torchvision)": _each(paths, _decode),
    }


def _masks_as_png(masks: Path, folder: Path) -> dict[Path, Path]:
    """Full-size PNG masks, as other tools keep them, by image path."""
    reader = MaskReader(masks)
    folder.mkdir()
    written = {}
    for number, path in enumerate(reader.paths):
        height, width = reader.image_size(path)
        mask = cv2.resize(
            reader[path].astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_NEAREST
        )
        out = folder / f"{number}.png"
        Image.fromarray(mask).save(out)
        written[Path(reader.image_root) / path] = out
    return written


def _ours(images: Path, masks: Path, *, augment: bool) -> Run:
    options = LoaderOptions(batch_size=BATCH, seed=SEED, workers=0, augment=False)
    loader = Loader(images, masks, NEEDS, options)

    def endless() -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from loader.batches(epoch)
            epoch += 1

    batches = endless()

    def run(samples: int) -> None:
        for _ in range(samples // BATCH):
            batch = next(batches)
            if augment:
                photometric.augment(batch)

    return run


def _each(paths: list[Path], make: Callable[[Path], object]) -> Run:
    """Run a pipeline over the paths in the order in which the loader takes them, epoch by epoch."""

    def endless() -> Iterator[Path]:
        for epoch in itertools.count():
            order = counter_generator(SEED, epoch, 0, 0, "order").permutation(len(paths))
            usable = len(paths) // BATCH * BATCH  # the loader drops an epoch's last images
            yield from (paths[place] for place in order[:usable])

    source = endless()

    def run(samples: int) -> None:
        for path in itertools.islice(source, samples):
            make(path)

    return run


def _twice(make: Callable[..., object], *decoded: object) -> list[object]:
    """Two views of what was decoded once, as MoCo's TwoCropsTransform does."""
    return [make(*decoded) for _ in (0, 1)]


def _pil(path: Path) -> Image.Image:
    with open(path, "rb") as file:
        return Image.open(io.BytesIO(file.read())).convert("RGB")


def _mask(path: Path) -> tv_tensors.Mask:
    return tv_tensors.Mask(np.asarray(Image.open(path)) > 0)


def _decode(path: Path) -> torch.Tensor:
    return decode_image(torch.from_numpy(np.fromfile(path, np.uint8)), mode=ImageReadMode.RGB)


def _tensors(path: Path, mask: Path) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    return tv_tensors.Image(_decode(path)), _mask(mask)


class PillowBlur:
    """MoCo's blur: Pillow's Gaussian with a random radius."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blur."""
        return image.filter(ImageFilter.GaussianBlur(radius=float(torch.empty(1).uniform_(0.1, 2.0))))


def _moco() -> Callable[[Image.Image], torch.Tensor]:
    """MoCo v2's augmentation with the transforms that its code calls."""
    composed: Callable[[Image.Image], torch.Tensor] = v1.Compose(
        [
            v1.RandomResizedCrop(224, scale=(0.2, 1.0)),
            v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v1.RandomGrayscale(p=0.2),
            v1.RandomApply([PillowBlur()], p=0.5),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(photometric.MEAN, photometric.STD),
        ]
    )
    return composed


def _torchvision_v2() -> Callable[..., object]:
    """The same with torchvision's newer transforms, which crop a mask along."""
    composed: Callable[..., object] = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(photometric.MEAN, photometric.STD),
        ]
    )
    return composed


def _take_turns(runs: dict[str, Run], rounds: int, samples: int) -> dict[str, list[float]]:
    """Samples a second of each pipeline in each round; the first round only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run(samples)
            if number:
                rates[name].append(samples / (time.process_time() - started))
    return rates


def _ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Ours over each rival: the median over rounds of the ratio within a round."""
    ours = rates["ours, originals"]
    return {
        name: round(statistics.median(a / b for a, b in zip(ours, values, strict=True)), 2)
        for name, values in rates.items()
        if not name.startswith("ours, originals")
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()

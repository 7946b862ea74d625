"""Whether the loader's memory grows: resident memory of this process and its workers over many batches.

    python benchmarks/loader_memory.py [IMAGES] [--batches 10000] [--workers 2] [--out FILE]

Without IMAGES it makes 64 of 48 x 48 pixels, so that the batches are many rather than large.
Prints the memory after each tenth of the batches, in MiB; a leak shows as growth in the second half.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from hapicl.common.atomic_files import atomic_write
from hapicl.data.loading.batch import Needs, ViewPolicy
from hapicl.data.loading.loader import Loader, LoaderOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.images is not None:
        result = measure(options, options.images)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, tiny_images(Path(folder)))
    text = json.dumps(result)
    print(text)
    if options.out is not None:
        with atomic_write(options.out) as part:
            part.write_text(text + "\n")


def tiny_images(folder: Path) -> Path:
    """Write 64 JPEGs of noise, 48 x 48 pixels."""
    generator = np.random.default_rng(0)
    for number in range(64):
        pixels = generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def measure(options: argparse.Namespace, images: Path) -> dict[str, object]:
    """Run the batches; give the settings and the memory after each tenth of them."""
    needs = Needs(views=(ViewPolicy(size=options.size), ViewPolicy(size=options.size)))
    settings = {"batch_size": options.batch_size, "seed": 0, "workers": options.workers}
    measured, done, epoch = {}, 0, 0
    with Loader(images, None, needs, LoaderOptions(**settings)) as loader:
        while done < options.batches:
            for _ in loader.batches(epoch):
                done += 1
                if done % max(1, options.batches // 10) == 0:
                    measured[done] = resident()
                if done == options.batches:
                    break
            epoch += 1
    half = list(measured.values())[4:]
    return {
        "images": options.images.name if options.images is not None else "64 of noise, 48 x 48",
        "batches": options.batches,
        **settings,
        "size": options.size,
        "mib_after_batches": measured,
        "growth_in_the_second_half_mib": round(half[-1] - half[0], 1),
    }


def resident() -> float:
    """MiB of this process and its workers, shared pages counted by share (PSS)."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return round(sum(process.memory_full_info().pss for process in processes) / 2**20, 1)


if __name__ == "__main__":
    main()

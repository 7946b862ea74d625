"""Photometric augmentation of a batch: ours, kornia, and torchvision image by image.

    python benchmarks/photometric.py --out benchmarks/results/photometric.json
    python benchmarks/photometric.py --device cuda --batch-size 256 --out ...

MoCo v2's recipe (jitter .8, grey .2, blur .5, normalise) on 224 px views that lie as uint8 on the device. All
take turns in one process; medians of rounds, and on CUDA the peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import kornia.augmentation as K
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from hapicl.common.atomic_files import atomic_write
from hapicl.common.randomness import counter_generator
from hapicl.data.loading import photometric
from hapicl.data.loading.batch import PhotometricPolicy


def main() -> None:
    options = _parse()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    images = _images(options.batch_size, options.size).to(device)
    runs = _runs(device)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    peaks = {}
    for number in range(options.rounds + 1):
        for name, run in runs.items():
            seconds, peaks[name] = _time(run, images, device)
            if number:  # the first round warms up
                rates[name].append(len(images) / seconds)
    result = {
        "what": "views/s, MoCo v2's photometric augmentation of one batch; median of rounds, in turn",
        "batch": list(images.shape),
        "rounds": options.rounds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "views_per_second": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ours_over": {
            name: round(statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True)), 2)
            for name, values in rates.items()
            if name != "ours"
        },
        "peak_mib": peaks if device.type == "cuda" else "not measured on the CPU",
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
        },
        "versions": {name: version(name) for name in ("torch", "torchvision", "kornia", "numpy")}
        | {"python": platform.python_version()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        with atomic_write(options.out) as part:
            part.write_text(text + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="side of the views, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _images(count: int, side: int) -> Tensor:
    """Smooth noise, uint8, as the loader lays views out (channels last)."""
    small = torch.rand(count, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 1)
    return (large * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _runs(device: torch.device) -> dict[str, Callable[[Tensor], object]]:
    mean, std = photometric.MEAN, photometric.STD
    policy = PhotometricPolicy()
    calls = 0

    def drawn(count: int) -> Tensor:
        nonlocal calls
        calls += 1
        rows = [
            photometric.draw_row(counter_generator(0, calls, sample, 0, "photometric"), policy)
            for sample in range(count)
        ]
        return torch.from_numpy(np.stack(rows))

    def ours(images: Tensor) -> Tensor:
        return photometric.augment_images(images, drawn(len(images)))

    kornia_steps = torch.nn.Sequential(
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8, same_on_batch=False),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5),
        K.Normalize(torch.tensor(mean), torch.tensor(std)),
    ).to(device)
    one = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    return {
        "ours": ours,
        "kornia": lambda images: kornia_steps(images.float() / 255),
        "torchvision v2, image by image": lambda images: [one(image) for image in images],
    }


def _time(run: Callable[[Tensor], object], images: Tensor, device: torch.device) -> tuple[float, float]:
    """Seconds, and MiB of peak memory on CUDA."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    with torch.no_grad():
        run(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter() - started, torch.cuda.max_memory_allocated(device) / 2**20
    return time.perf_counter() - started, 0.0


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()

"""The mask file at scale: write, join, verify and read as many masks as ImageNet has images.

    python benchmarks/maskfile.py --out benchmarks/results/maskfile.json      # 1.28 million: 1.5 GB of disk
    python benchmarks/maskfile.py --masks 20000 --out small.json

Masks are 2,000 different made-up blobs at a long side of 160 pixels, repeated under names like ImageNet's.
Reads are of random paths, the second pass over the same paths. Each figure is given twice: processor time,
which other load on the machine hardly moves, and wall time, which holds for a quiet machine only.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import tempfile
import time
import zlib

import cv2
import h5py
import numpy as np

from hapicl.data.geometry import sample_geometry
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import join_masks, pack_mask, write_masks
from hapicl.maskgen.building.merge import describe
from hapicl.maskgen.inspection.verify import verify_masks

IMAGENET = 1_281_167
PART = 65_536
SHAPES = 2_000
READS = 20_000


def blobs(count):
    """Packed masks of smooth random shapes, 120 x 160 pixels, for images of 375 x 500."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        noise = cv2.GaussianBlur(generator.random((120, 160), dtype=np.float32), (0, 0), 14)
        mask = noise > np.quantile(noise, generator.uniform(0.4, 0.9))
        rows.append(
            pack_mask("x", mask, (375, 500), confidence=float(generator.random()), file_bytes=100_000)
        )
    return rows


def name(number):
    """Like n01440764/n01440764_10026.JPEG, 1300 to a folder; sorted as they are numbered."""
    folder = f"n{1_440_000 + number // 1300:08d}"
    return f"{folder}/{folder}_{number % 1300:05d}.JPEG"


def write(folder, count):
    """Write parts and join them; returns the file and the seconds of each."""
    shapes = blobs(min(SHAPES, count))
    description = describe({"name": "benchmark"}, "/imagenet")
    clock = Clock()
    parts = []
    for first in range(0, count, PART):
        numbers = range(first, min(first + PART, count))
        rows = [dataclasses.replace(shapes[n % len(shapes)], path=name(n)) for n in numbers]
        parts.append(folder / f"part-{first:07d}.h5")
        write_masks(parts[-1], rows, description)
    written, clock = clock.seconds(), Clock()
    join_masks(folder / "masks.h5", [MaskReader(part) for part in parts], description)
    joined = clock.seconds()
    for part in parts:
        part.unlink()
    return folder / "masks.h5", {"write_parts_s": written, "join_s": joined}


class Clock:
    """Seconds since it was made, of processor and wall."""

    def __init__(self):
        self.processor, self.wall = time.process_time(), time.perf_counter()

    def seconds(self, scale=1.0):
        """Give the time since then, by kind."""
        return {
            "cpu": round((time.process_time() - self.processor) * scale, 3),
            "wall": round((time.perf_counter() - self.wall) * scale, 3),
        }


def timed_reads(read, paths):
    """Microseconds per call, second pass."""
    for path in paths:
        read(path)
    clock = Clock()
    for path in paths:
        read(path)
    return clock.seconds(1e6 / len(paths))


def random_paths(count, amount, seed=0):
    return [name(n) for n in np.random.default_rng(seed).integers(0, count, amount).tolist()]


def through_h5py(path):
    """The same read with h5py calls instead of the memory map, as a rival."""
    file = h5py.File(path, "r")
    keys, offset, sizes, blob = file["path"][...], file["offset"][...], file["mask_size"][...], file["blob"]

    def read(image):
        row = int(np.searchsorted(keys, np.bytes_(image.encode())))
        bits = zlib.decompress(blob[offset[row] : offset[row + 1]].tobytes())
        height, width = sizes[row]
        return np.unpackbits(np.frombuffer(bits, np.uint8).reshape(height, -1), axis=1, count=width).astype(
            bool
        )

    return read


def read_some(arguments):
    """One of several processes; returns microseconds per read."""
    reader, paths = arguments
    return timed_reads(reader.__getitem__, paths)


def measure_reads(path, count):
    """Read in every way that training does."""
    clock = Clock()
    reader = MaskReader(path)
    len(reader)
    opening = clock.seconds(1e3)
    paths = random_paths(count, READS)
    geometries = [sample_geometry(np.random.default_rng(seed), (375, 500)) for seed in range(64)]
    turn = itertools.count()

    def two_crops(image):
        integral = reader.integral(image)
        return [integral.crop(geometries[next(turn) % 64], 7) for _ in range(2)]

    result = {
        "open_ms": opening,
        "mask_us": timed_reads(reader.__getitem__, paths),
        "crop_7x7_us": timed_reads(lambda image: reader.crop(image, geometries[next(turn) % 64], 7), paths),
        "two_crops_of_one_unpacking_us": timed_reads(two_crops, paths),
        "mask_through_h5py_us": timed_reads(through_h5py(path), paths),
    }
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(8) as pool:
            jobs = [(MaskReader(path), random_paths(count, READS // 4, seed)) for seed in range(8)]
            each = pool.map(read_some, jobs)
        medians = {kind: float(np.median([one[kind] for one in each])) for kind in ("cpu", "wall")}
        result[f"mask_us_each_of_8_processes_{method}"] = medians
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=IMAGENET)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = pathlib.Path(name_of_folder)
        small, _ = write(folder / "small", min(100_000, arguments.masks))
        reads_small = measure_reads(small, min(100_000, arguments.masks))
        path, seconds = write(folder / "large", arguments.masks)
        clock = Clock()
        report = verify_masks(path)
        seconds["verify_s"] = clock.seconds()
        assert report.masks == arguments.masks
        assert not report.problems
        result = {
            "benchmark": "maskfile",
            "masks": arguments.masks,
            "bytes": path.stat().st_size,
            "bytes_per_mask_packed": len(MaskReader(path).column("blob")) / arguments.masks,
            **seconds,
            "reads_at_100000": reads_small,
            f"reads_at_{arguments.masks}": measure_reads(path, arguments.masks),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "machine": platform.machine(),
            "cores": multiprocessing.cpu_count(),
            "load_average_at_end": list(os.getloadavg()),
            "date": time.strftime("%Y-%m-%d"),
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

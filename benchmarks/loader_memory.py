"""Whether the loader's memory grows: resident memory of this process and its workers over many batches.

    python benchmarks/loader_memory.py IMAGES [--batches 10000] [--workers 2] [--out FILE]

Prints the memory after each tenth of the batches, in MiB; a leak shows as growth in the second half.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import psutil

from hapicl.data.batch import Needs, ViewPolicy
from hapicl.data.files import whole_file
from hapicl.data.loader import Loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    needs = Needs(views=(ViewPolicy(size=options.size), ViewPolicy(size=options.size)))
    settings = {"batch_size": options.batch_size, "seed": 0, "workers": options.workers}
    measured, done, epoch = {}, 0, 0
    with Loader(options.images, None, needs, **settings) as loader:
        while done < options.batches:
            for _ in loader.batches(epoch):
                done += 1
                if done % max(1, options.batches // 10) == 0:
                    measured[done] = resident()
                if done == options.batches:
                    break
            epoch += 1
    half = list(measured.values())[4:]
    result = {**vars(options), "mib_after_batches": measured}
    result["growth_in_the_second_half_mib"] = round(half[-1] - half[0], 1)
    text = json.dumps(
        {key: str(value) if isinstance(value, Path) else value for key, value in result.items()}
    )
    print(text)
    if options.out is not None:
        with whole_file(options.out) as part:
            part.write_text(text + "\n")


def resident() -> float:
    """MiB of this process and its workers, shared pages counted by share (PSS)."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return round(sum(process.memory_full_info().pss for process in processes) / 2**20, 1)


if __name__ == "__main__":
    main()

"""What learned refinement gains, and what it costs: trials of its settings, and small folders.

    python benchmarks/refine.py --set human=/data/fg_human --set bag=/data/fg_bag_even --trial ""
        --unlabelled /data/imagenet1000 --weights .5 .7 --small 20 60 200 --device cuda --out refine.json

A set is a folder with `images/` and `masks/`, matched by stem. A trial is what a user does: first masks of
all images together by `quality`, then `masks refine` with the settings named (`--trial "width=24 epochs=40"`,
"" for the default). No truth is seen by either. Each of `--weights` cuts the masks again with another weight
of the network in the map. `--small N` refines N images of each set alone, drawn by counter, and scores
those. Scores are the mean IoU of the even stems, the odd ones and all.
"""

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from hapicl.common.config import build
from hapicl.common.iou import iou
from hapicl.common.randomness import counter_generator
from hapicl.data.images.decode import read_image
from hapicl.data.images.folder import find_images
from hapicl.data.masks.reader import MaskReader
from hapicl.maskgen.building.build import build_masks, build_rows
from hapicl.maskgen.building.settings import BuildSettings
from hapicl.maskgen.pipeline import resize_to_work_size
from hapicl.maskgen.refinement.prediction import (
    NetworkRows,
    foreground_probability,
    load_network,
    open_network,
)
from hapicl.maskgen.refinement.refine import RefineSummary, refine_masks
from hapicl.maskgen.refinement.settings import RefineSettings

Truths = dict[str, NDArray[np.bool_]]  # by path in the combined folder, in order of the stems


@contextmanager
def no_bar(title: str) -> Iterator[Callable[[int, int, int], None]]:
    """Show no progress."""
    yield lambda done, total, failures: None


def read_truths(name: str, folder: Path) -> Truths:
    """The truths of a set by path in a folder that holds the set's images under its name."""
    files = {path.stem: path for path in (folder / "masks").iterdir()}
    truths = {}
    for path in sorted((folder / "images").iterdir(), key=lambda path: path.stem):
        mask = cv2.imread(str(files[path.stem]), cv2.IMREAD_GRAYSCALE)
        truths[f"{name}/{path.name}"] = mask > mask.max() / 2
    return truths


def halves(masks: Callable[[str], NDArray], truths: Truths) -> dict[str, float]:
    """Mean IoU of the even stems, of the odd ones, and of all; `masks` gives a mask or a probability."""
    values = np.array(
        [
            iou(cv2.resize(masks(path).astype(np.float32), truth.shape[::-1]) > 0.5, truth)
            for path, truth in truths.items()
        ]
    )
    return {"even": float(values[::2].mean()), "odd": float(values[1::2].mean()), "all": float(values.mean())}


def parse_trial(text: str) -> RefineSettings:
    """`rounds=1 width=24` as settings."""
    return build(RefineSettings, dict(entry.split("=", 1) for entry in text.split()))


def figures(summary: RefineSummary, seconds: float) -> dict:
    """What a refinement says of itself."""
    agreement = None if summary.agreement is None else summary.agreement.as_dict()
    return {"seconds": seconds, "kept_because": summary.kept_because, "agreement": agreement}


class Trials:
    """Refinements of one folder of images by several settings, scored against truths that they do not see."""

    def __init__(
        self, images: Path, work: Path, truths: dict[str, Truths], options: argparse.Namespace
    ) -> None:
        self.images, self.work, self.truths = images, work, truths
        self.device, self.settings = options.device, BuildSettings(workers=options.workers)
        self.first = work / "first.h5"
        build_masks(images, self.first, "quality", self.settings)

    def score(self, file: Path) -> dict[str, dict[str, float]]:
        """Every set's halves by the masks of a file."""
        reader = MaskReader(file)
        return {name: halves(lambda path: reader[path], truths) for name, truths in self.truths.items()}

    def run(self, name: str, settings: RefineSettings, weights: list[float]) -> dict:
        """Refine, score, and cut again by other weights."""
        out, start = self.work / f"{name}.h5", time.monotonic()
        summary = refine_masks(
            self.images, self.first, out, settings, self.settings, device=self.device, bar=no_bar, show=False
        )
        result = figures(summary, time.monotonic() - start) | {"scores": self.score(out)}
        if summary.network is None:
            return result
        file = open_network(summary.network)
        result |= {"steps": file.about["steps"], "alone": self.alone(summary.network)}
        result["by_weight"] = {}
        for weight in weights:
            other = NetworkRows(replace(file, about={**file.about, "network_weight": weight}))
            build_rows(self.images, self.work / f"{name}-{weight}.h5", other, self.settings)
            result["by_weight"][weight] = self.score(self.work / f"{name}-{weight}.h5")
        return result

    def alone(self, path: Path) -> dict[str, dict[str, float]]:
        """Every set's halves by the network without maps and cut."""
        file = open_network(path)
        network, size = load_network(file), int(file.about["image_size"])

        def probability(image: str) -> NDArray[np.float32]:
            picture = read_image(self.images / image, reduce_to=160)
            return foreground_probability(resize_to_work_size(picture, 160), network, size)

        return {name: halves(probability, truths) for name, truths in self.truths.items()}


def small_folder(name: str, folder: Path, count: int, work: Path, options: argparse.Namespace) -> dict:
    """Refine some images of one set alone."""
    truths = read_truths(name, folder)
    order = counter_generator(0, count, 0, 0, purpose="small folder").permutation(len(truths))[:count]
    chosen = [list(truths)[int(row)] for row in np.sort(order)]
    images = work / "images"
    (images / name).mkdir(parents=True)
    for path in chosen:
        (images / path).symlink_to((folder / "images" / Path(path).name).resolve())
    trials = Trials(images, work, {name: {path: truths[path] for path in chosen}}, options)
    return {"first": trials.score(trials.first)[name], **trials.run("refined", RefineSettings(), [])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=FOLDER", help="scored set; repeat"
    )
    parser.add_argument(
        "--unlabelled", action="append", default=[], type=Path, help="images to learn from; repeat"
    )
    parser.add_argument("--trial", action="append", default=[], metavar="SETTINGS", help="settings; repeat")
    parser.add_argument(
        "--weights", nargs="*", type=float, default=[], help="weights of the network in the map"
    )
    parser.add_argument("--small", nargs="*", type=int, default=[], help="sizes of small folders")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="processes that make masks; all cores otherwise")
    parser.add_argument("--work", type=Path, default=Path("refine-work"), help="new folder; stays")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, written after every trial")
    options = parser.parse_args()

    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
    result: dict = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "trials": {}, "small": {}}

    def keep(place: str, name: str, value: dict) -> None:
        result[place][name] = value
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(value), flush=True)

    sets = {name: Path(folder) for name, folder in (entry.split("=", 1) for entry in options.set)}
    if options.trial:
        images = options.work / "images"
        images.mkdir(parents=True)
        for name, folder in sets.items():
            (images / name).symlink_to((folder / "images").resolve())
        for folder in options.unlabelled:
            (images / f"unlabelled-{folder.name}").symlink_to(folder.resolve())
        truths = {name: read_truths(name, folder) for name, folder in sets.items()}
        trials = Trials(images, options.work, truths, options)
        result["images"] = len(find_images(images))
        keep("trials", "first masks", {"scores": trials.score(trials.first)})
        for number, text in enumerate(options.trial):
            keep(
                "trials", text or "default", trials.run(f"trial-{number}", parse_trial(text), options.weights)
            )
    for name, folder in sets.items():
        for count in options.small:
            work = options.work / f"small-{name}-{count}"
            shutil.rmtree(work, ignore_errors=True)
            keep("small", f"{name} {count}", small_folder(name, folder, count, work, options))


if __name__ == "__main__":
    main()

"""Mask quality and speed of every recipe against what else there is, on one core.

    python benchmarks/masks.py --set fg_bag_even=/data/fg_bag_even --speed /data/originals --out masks.json

A set is a folder with `images/` and `masks/`, matched by stem. Parameters were chosen on the even stems (in
sorted order); by default the odd ones are scored. Times are processor seconds of one thread, so that a busy
machine changes them little; `--figure` draws quality against time. OpenCV's static saliency maps are in its
contrib wheels: `pip install --no-deps --target DIR opencv-contrib-python-headless` and `PYTHONPATH=DIR`.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numba
import numpy as np
import skimage
import sklearn
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb as skimage_felzenszwalb
from threadpoolctl import threadpool_limits

from hapicl.common.iou import iou
from hapicl.data.images.decode import read_image
from hapicl.data.images.folder import find_images
from hapicl.maskgen import RECIPES, segment
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.building.settings import BuildSettings
from hapicl.maskgen.refinement.prediction import NetworkFile, NetworkRows, open_network
from hapicl.maskgen.refinement.refine import network_path, refine_masks

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Maker = Callable[[Image], Mask]


def centre_ellipse(image: Image) -> Mask:
    """Axes of 70 % of the sides."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    return np.hypot((rows + 0.5) / height - 0.5, (columns + 0.5) / width - 0.5) < 0.35


def grab_cut_rectangle(image: Image) -> Mask:
    """GrabCut, 3 iterations, from a rectangle 8 % inside, at a long side of 160 pixels."""
    factor = min(1.0, 160 / max(image.shape[:2]))
    work = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    height, width = work.shape[:2]
    left, top = round(0.08 * width), round(0.08 * height)
    marks = np.zeros((height, width), np.uint8)
    cv2.setRNGSeed(0)
    rectangle = (left, top, width - 2 * left, height - 2 * top)
    cv2.grabCut(work, marks, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_RECT)
    return (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)


def detcon_regions(image: Image) -> Mask:
    """Largest region off the border of scikit-image's Felzenszwalb at full size, DetCon's settings."""
    labels = skimage_felzenszwalb(image, scale=1000, sigma=0.8, min_size=1000)
    area = np.bincount(labels.ravel())
    area[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = 0
    return (labels == area.argmax()) & bool(area.any())


def opencv_saliency(kind: str) -> Maker:
    """One of OpenCV contrib's static saliency maps with Otsu's threshold."""

    def make(image: Image) -> Mask:
        detector = getattr(cv2.saliency, f"StaticSaliency{kind}_create")()
        values = (detector.computeSaliency(image)[1] * 255).astype(np.uint8)
        return cv2.threshold(values, 0, 255, cv2.THRESH_OTSU)[1] > 0

    return make


def makers() -> dict[str, Maker]:
    """All recipes that need no training, and the rivals there are here."""
    chosen: dict[str, Maker] = {}
    for name, recipe in RECIPES.items():
        if not recipe.learned:
            chosen[name] = lambda image, recipe=recipe: segment(image, recipe).mask
    chosen |= {
        "centre ellipse": centre_ellipse,
        "GrabCut rectangle": grab_cut_rectangle,
        "scikit-image Felzenszwalb": detcon_regions,
    }
    if hasattr(cv2, "saliency"):
        chosen["OpenCV spectral residual"] = opencv_saliency("SpectralResidual")
        chosen["OpenCV fine grained"] = opencv_saliency("FineGrained")
    return chosen


def load_set(folder: Path, half: str) -> list[tuple[Image, Mask]]:
    """Read the chosen half of a set: images and their truths, by sorted stem."""
    truths = {path.stem: path for path in (folder / "masks").iterdir()}
    pairs = []
    for number, path in enumerate(sorted((folder / "images").iterdir(), key=lambda path: path.stem)):
        if half == "all" or (number % 2 == 1) == (half == "odd"):
            truth = cv2.imread(str(truths[path.stem]), cv2.IMREAD_GRAYSCALE)
            pairs.append((read_image(path), truth > truth.max() / 2))
    return pairs


def score(maker: Maker, pairs: list[tuple[Image, Mask]]) -> tuple[float, float]:
    """Mean IoU at the truths' size, and processor milliseconds per decoded image."""
    maker(pairs[0][0])
    start = time.process_time()
    masks = [maker(image) for image, _ in pairs]
    milliseconds = (time.process_time() - start) / len(pairs) * 1e3
    overlaps = [
        iou(cv2.resize(mask.astype(np.float32), truth.shape[::-1]) > 0.5, truth)
        for mask, (_, truth) in zip(masks, pairs, strict=True)
    ]
    return float(np.mean(overlaps)), milliseconds


@contextmanager
def no_bar(title: str) -> Iterator[Callable[[int, int, int], None]]:
    """Show no progress."""
    yield lambda done, total, failures: None


def train_network(folders: list[Path], work: Path) -> tuple[NetworkFile, dict[str, float]]:
    """Refine as `hapicl masks refine` does by default, on all images of some folders together; no truth.

    Returns:
        The network, and what it cost: seconds of the clock and of the processor, first masks not counted.
    """
    images = work / "images"
    images.mkdir(parents=True)
    for number, folder in enumerate(folders):
        (images / f"{number}-{folder.name}").symlink_to(folder.resolve())
    build_masks(images, work / "first.h5", "quality", BuildSettings(workers=1))
    start, processor = time.monotonic(), time.process_time()
    summary = refine_masks(
        images, work / "first.h5", work / "refined.h5", build_settings=BuildSettings(workers=1), bar=no_bar
    )
    if summary.network is None:
        raise SystemExit(summary.kept_because)
    network = open_network(network_path(work / "refined.h5"))
    cost = {
        "images": float(len(find_images(images))),
        "seconds": time.monotonic() - start,
        # the training alone: masks are made by worker processes
        "training_processor_seconds": time.process_time() - processor,
    }
    return network, cost


def speed(folder: Path, network: NetworkFile | None) -> dict[str, dict[str, float]]:
    """Images per second and core from file to mask, decoding (reduced where the recipe allows) included."""
    paths = [folder / path for path in find_images(folder)]
    rates = {}
    jobs: dict[str, Callable[[Path], object]] = {"decode only": lambda path: read_image(path, reduce_to=160)}
    for name, recipe in RECIPES.items():
        if not recipe.learned:
            jobs[name] = lambda path, recipe=recipe: segment(
                read_image(path, reduce_to=recipe.work_size), recipe
            )
    if network is not None:
        rows = NetworkRows(network)
        jobs["refined"] = lambda path: rows.find(read_image(path, reduce_to=rows.recipe.work_size))
    for name, job in jobs.items():
        job(paths[0])
        start = time.process_time()
        for path in paths:
            job(path)
        seconds = (time.process_time() - start) / len(paths)
        rates[name] = {"ms_per_image": seconds * 1e3, "images_per_second_and_core": 1 / seconds}
    return rates


def draw(result: dict, path: Path) -> None:
    """Quality against time, one panel per set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(result["sets"]), figsize=(6.2 * len(result["sets"]), 4.2), squeeze=False
    )
    for panel, (name, rows) in zip(panels[0], result["sets"].items(), strict=True):
        for maker, row in rows["methods"].items():
            place, ours = (row["ms_per_image"], row["iou"]), maker in RECIPES
            panel.plot(*place, "o" if ours else "x", color="C0" if ours else "C7")
            # `refined` lies close to `quality`
            offset, side = ((7, -3), "left") if maker == "refined" else ((0, 6 if ours else -13), "center")
            panel.annotate(maker, place, offset, textcoords="offset points", fontsize=8, ha=side)
        panel.set(
            xscale="log", title=f"{name}: {rows['images']} images", xlabel="processor ms per decoded image"
        )
        panel.set_ylabel("mean IoU")
        panel.margins(x=0.18, y=0.1)
        panel.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def measure(options: argparse.Namespace, result: dict, temporary: Path) -> None:
    """Train where asked, score every set, time every recipe; all goes into `result`."""
    sets = {name: Path(folder) for name, folder in (entry.split("=", 1) for entry in options.set)}
    network = None if options.network is None else open_network(options.network)
    if options.refine:
        folders = [folder / "images" for folder in sets.values()] + options.unlabelled
        network, result["training"] = train_network(folders, options.work or temporary / "work")
    chosen = makers()
    if network is not None:
        result["network"] = {"digest": network.digest, **network.about}
        rows = NetworkRows(network)
        chosen["refined"] = lambda image: rows.find(image).mask
    for name, folder in sets.items():
        pairs = load_set(folder, options.half)
        methods = {}
        for maker_name, maker in chosen.items():
            overlap, milliseconds = score(maker, pairs)
            methods[maker_name] = {"iou": overlap, "ms_per_image": milliseconds}
        result["sets"][name] = {"images": len(pairs), "methods": methods}
    if options.speed:
        result["speed"] = speed(options.speed, network)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=FOLDER", help="scored set; repeat"
    )
    parser.add_argument("--half", choices=["odd", "even", "all"], default="odd")
    parser.add_argument("--speed", type=Path, help="image folder for the speed from file to mask")
    parser.add_argument(
        "--refine", action="store_true", help="also train `refined`, on the images of all sets together"
    )
    parser.add_argument(
        "--unlabelled", action="append", default=[], type=Path, help="folder to train on too; repeat"
    )
    parser.add_argument("--network", type=Path, help="a network of `masks refine`, instead of --refine")
    parser.add_argument("--work", type=Path, help="new folder for --refine; a temporary one otherwise")
    parser.add_argument("--out", type=Path, help="JSON file; printed otherwise")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    threadpool_limits(1)

    libraries = {module.__name__: module.__version__ for module in (np, cv2, numba, skimage, sklearn)}
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "libraries": libraries,
    }
    result: dict = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "half": options.half, "sets": {}}
    if not hasattr(cv2, "saliency"):
        result["not_run"] = {"OpenCV static saliency": "this OpenCV has no cv2.saliency (a contrib module)"}
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, result, Path(temporary))
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    else:
        print(text)
    if options.figure:
        draw(result, options.figure)


if __name__ == "__main__":
    main()

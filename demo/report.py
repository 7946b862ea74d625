"""The demo's report: one page with what was made, the pictures, the curves and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..common.atomic_files import atomic_write
from ..common.chart import Chart, figure_chart
from ..common.page import Code, Note, Picture, Pictures, Section, Table, page
from ..common.system.processor import usable_cores
from ..engine.loggers.run_files import read_config
from ..maskgen.inspection.score import Scores
from .folder import Folder
from .learning import Learning
from .stages import Run, mean_iou

NEXT_STEPS = """\
hapicl masks build --images photos/ --out masks.h5
hapicl masks show masks.h5 --out gallery.png --sample 24
hapicl pretrain --masks masks.h5 --arch resnet50 --out runs/first"""
MORE_GPUS = "torchrun --standalone --nproc-per-node 4 -m hapicl pretrain --masks masks.h5 --out runs/first"
USE_WEIGHTS = """\
from safetensors.torch import load_file
from torchvision.models import resnet50

model = resnet50()
model.load_state_dict(load_file("runs/first/backbone.safetensors"), strict=False)  # all but fc"""


@dataclass(frozen=True)
class DemoResult:
    """What the demo did, for its report."""

    pictures: Folder
    scores: Scores
    gallery: tuple[NDArray[np.uint8], NDArray[np.uint8]]  # photographs, collages; each (H, W, 3)
    run: Run
    learning: Learning
    parts: Sequence[tuple[str, str, float]]  # name, what it made, seconds


def write_report(out: Path, result: DemoResult) -> None:
    """Write the page, with every picture inside it."""
    sections = [
        _overview(result),
        _learning(result),
        _gallery(result),
        _curves(result.run),
        _settings(result.run),
        _next(),
        _credits(result),
    ]
    lead = (
        "Both stages on a small folder: foreground masks without labels, then a short pretraining of "
        "ResNet-18 with HAPiCL, and what it learnt by it. It shows that everything works here; the run is "
        "far too short to give a useful backbone."
    )
    text = page(
        "hapicl demo", sections, lead=lead, footer=f"Made by hapicl {_environment(result.run)['hapicl']}."
    )
    with atomic_write(out) as part:
        part.write_text(text, encoding="utf-8")


def _overview(result: DemoResult) -> Section:
    """What was made, how long it took, and how good the masks are."""
    seconds = sum(duration for *_, duration in result.parts)
    rows = [(name, made, f"{duration:.1f}") for name, made, duration in result.parts]
    environment = _environment(result.run)
    caption = (
        f"Measured on this machine: training on {environment['device']}, {usable_cores()} CPU cores in use."
    )
    return Section(
        "What was made",
        [
            Table(["part", "what", "seconds"], [*rows, ("all", "", f"{seconds:.1f}")], caption, numeric=[2]),
            _score_table(result),
            "IoU is the area that mask and truth share over the area that either covers; 1 is perfect. The "
            "masks were found without the truth. Collages are easier than photographs: one whole object on a "
            "strange background. What counts are the masks of your own images, so look at those.",
        ],
    )


def _score_table(result: DemoResult) -> Table:
    """Mean IoU of photographs, of collages, and of each class of collages."""
    pictures, scores = result.pictures, result.scores
    rows: list[tuple[str, int, str]] = []
    for name, group in (("photographs", pictures.photographs), ("collages", pictures.collages)):
        rows.append((name, len(group), f"{mean_iou(scores, group):.3f}"))
    for label in pictures.labels:
        group = tuple(name for name in pictures.collages if name.startswith(f"{label}/"))
        if group:
            rows.append((f"collages of {label}", len(group), f"{mean_iou(scores, group):.3f}"))
    return Table(["masks of", "images", "mean IoU"], rows, "Masks against the truth", numeric=[1, 2])


def _learning(result: DemoResult) -> Section:
    """Scores of random weights and of the trained ones on collages that were not trained on."""
    before, after = result.learning.before, result.learning.after
    rows = [
        (name, f"{100 * first:.1f}", f"{100 * then:.1f}")
        for name, first, then in (
            ("object named by its nearest neighbours", before.objects, after.objects),
            ("foreground from frozen features, mIoU", before.foreground, after.foreground),
        )
    ]
    pictures = [
        Picture(picture, "", "A collage, its features before, and after", lossy=True)
        for picture in result.learning.pictures
    ]
    return Section(
        "Before and after",
        [
            Table(
                ["on collages that were not trained on", "before", "after"],
                rows,
                "Per cent. Before: random weights, BatchNorm statistics of the training collages. One seed.",
                numeric=[1, 2],
            ),
            "Each picture: a collage, then the first three principal components of the feature map as "
            "colours, with random weights and after training. Where one colour covers an object and not what "
            "is around it, the features tell them apart.",
            Pictures(pictures, minimum=420),
        ],
    )


def _gallery(result: DemoResult) -> Section:
    """The gallery, its two halves below each other on a narrow screen."""
    photographs, collages = result.gallery
    halves = [
        Picture(photographs, "Every photograph.", "Photographs with saliency, mask and truth", lossy=True),
        Picture(
            collages,
            "The first collage of every class, whatever its score.",
            "Collages with saliency, mask and truth",
            lossy=True,
        ),
    ]
    words = (
        "Where an object fills the frame, or a scene has no single subject, the heuristics fail. The IoU of "
        "each mask stands below it."
    )
    return Section("Gallery", [words, Pictures(halves, minimum=420)])


def _curves(run: Run) -> Section:
    """Loss terms, and how far foreground and background have come apart."""
    chance = "The dashed line is the loss of guessing."
    curves = [
        _curve(
            run.metrics,
            ("loss/instance", "chance/instance"),
            "instance loss",
            f"{chance} Below it, a view is told from those of other images.",
        ),
        _curve(
            run.metrics,
            ("loss/pixel", "chance/pixel"),
            "pixel loss",
            f"{chance} It depends on how much of each crop is foreground, so it moves too.",
        ),
        _curve(
            run.metrics,
            ("pixel/similarity_gap",),
            "similarity gap",
            "Mean cosine similarity of cells with the same label minus that of foreground with background, "
            "between two views of an image. It opens as features tell the object from its surroundings.",
        ),
    ]
    return Section("Loss curves", [Pictures(curves, minimum=340)])


def _curve(metrics: Sequence[dict[str, float]], names: tuple[str, ...], title: str, caption: str) -> Chart:
    """One panel: a quantity over the steps, and where there is one its level at chance."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in metrics]
    axes.plot(steps, [line[names[0]] for line in metrics], color="C0", linewidth=1.8)
    for name in names[1:]:
        axes.plot(steps, [line[name] for line in metrics], color="#8a94a1", linestyle="--", linewidth=1)
    axes.set(title=title, xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(linewidth=0.6, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure_chart(figure, caption, f"Curve of the {title} over the steps")


def _settings(run: Run) -> Section:
    """What was run, and its speed."""
    settings, environment = run.settings, _environment(run)
    optimizer = settings.optimizer
    speed = float(np.median([line["speed/samples_per_second"] for line in run.metrics]))
    rows = [
        ("method", settings.method),
        ("backbone", f"{settings.arch}, views of {settings.image_size} x {settings.image_size} pixels"),
        ("length", f"{run.metrics[-1]['step']:.0f} steps of {settings.batch_size} images"),
        ("optimiser", f"{optimizer.name}, learning rate {optimizer.lr(settings.batch_size):g}, cosine"),
        ("device", f"{environment['device']}, {environment['workers']} loader processes"),
        ("precision", settings.precision),
        ("speed", f"{speed:.1f} images/s, the median of the steps"),
        ("PyTorch", environment["torch"]),
        ("seed", settings.seed),
        ("everything else", "run/config.json"),
    ]
    return Section("Settings", [Table([], rows)])


def _next() -> Section:
    """From the demo to a user's own images."""
    return Section(
        "Next: your own images",
        [
            "Any folder will do, flat or nested; labels are not used. Look at the gallery before you train.",
            Code(NEXT_STEPS),
            "An interrupted build goes on when the same command is given again; an interrupted run with "
            "--resume auto. Several GPUs of one machine:",
            Code(MORE_GPUS),
            "The weights have torchvision's names:",
            Code(USE_WEIGHTS),
            Note(
                "The masks are a substitute: the authors of HAPiCL used other mask sets and did not release "
                "their generators. hapicl masks import reads theirs, or yours."
            ),
        ],
    )


def _credits(result: DemoResult) -> Section:
    """Who made the photographs."""
    rows = [(name, credit) for name, credit in result.pictures.credits.items()]
    return Section(
        "Pictures",
        [
            "The photographs ship with scikit-image and scikit-learn; collages are cut from them.",
            Table([], rows),
        ],
    )


def _environment(run: Run) -> dict[str, Any]:
    """Device and versions, as the run recorded them."""
    environment: dict[str, Any] = read_config(run.folder)["environment"]
    return environment

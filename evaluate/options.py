"""Options that several commands of evaluation share: the protocol, the machine, where labelled data is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..common.terminal.completion import completing
from ..models.backbones.names import usual_names

FOLDER = click.Path(path_type=Path)
# the names of the PROTOCOLS beside each task's code, which shells complete without importing torch
PROTOCOL_NAMES = {
    "knn": ("knn-dino", "knn-instdisc"),
    "linear": ("linear-moco", "linear-moco-cached", "linear-mae"),
    "semi": ("semi-finetune", "logistic-1pct"),
    "svm": ("svm-voc07", "svm-voc07-lowshot"),
    "segment": ("seg-probe", "seg-densecl-fcn8", "seg-moco-fcn16", "seg-upernet-small", "ade-upernet"),
    "detect": (
        "detect-small",
        "detect-small-vit",
        "voc-c4-moco",
        "coco-fpn-2fc",
        "coco-fpn-4conv1fc",
        "coco-vitdet",
    ),
}
ARCH_NAMES = completing(usual_names)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator; the help shows them in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def protocol_options(task: str, default: str) -> Decorator:
    """Which protocol of a task, and what is changed in it."""
    return together(
        click.option(
            "--protocol",
            default=default,
            show_default=True,
            shell_complete=completing(lambda: PROTOCOL_NAMES[task]),
            help=f"By origin, see docs: {', '.join(PROTOCOL_NAMES[task])}.",
        ),
        click.option(
            "--arch",
            shell_complete=ARCH_NAMES,
            help="Backbone, where the file does not say; of random weights.",
        ),
        click.option("--stem", help="imagenet, no_pool or stride1.  [default: the file's, or by image size]"),
        click.option(
            "--image-size",
            type=click.IntRange(1),
            help="Side of the input, pixels.  [default: the protocol's]",
        ),
        click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Another parameter."),
    )


machine_options = together(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Processes that read images, for each process that computes.",
    ),
    click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True),
)

class_options = together(
    click.option("--train", type=FOLDER, required=True, help="Class folders to learn from."),
    click.option("--test", type=FOLDER, required=True, help="Class folders to measure on."),
)

_holdout = click.option(
    "--holdout", default=0.25, show_default=True, help="Fraction held out where no test set is named."
)

segmentation_options = together(
    click.option("--images", type=FOLDER, help="Images."),
    click.option("--labels", type=FOLDER, help="Label PNGs of the same names."),
    click.option("--test-images", type=FOLDER, help="Test images; else --holdout of the images."),
    click.option("--test-labels", type=FOLDER, help="Test labels."),
    click.option("--voc", type=FOLDER, help="VOC layout instead (JPEGImages, SegmentationClass)."),
    click.option("--split", default="train", show_default=True, help="VOC training split."),
    click.option("--test-split", default="val", show_default=True, help="VOC test split."),
    _holdout,
    click.option("--void", default=255, show_default=True, help="Label that does not count, besides 255."),
    click.option("--binary", is_flag=True, help="Labels are masks: everything above 0 is class 1."),
    click.option("--classes", type=int, help="Number of classes.  [default: read off the labels]"),
    click.option("--class-names", type=FOLDER, help="Text file with the name of one class per line."),
)

detection_options = together(
    click.option("--voc", type=FOLDER, help="VOC layout (JPEGImages, Annotations, ImageSets/Main)."),
    click.option("--split", default="trainval", show_default=True, help="VOC training split."),
    click.option("--test-split", default="test", show_default=True, help="VOC test split."),
    click.option("--images", type=FOLDER, help="Images of a COCO JSON."),
    click.option("--annotations", type=FOLDER, help="COCO JSON with boxes, perhaps masks."),
    click.option("--test-images", type=FOLDER, help="Test images; else the same folder."),
    click.option("--test-annotations", type=FOLDER, help="COCO JSON of the test set; else --holdout."),
    _holdout,
)


def name_value_pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE texts of --set."""
    for text in texts:
        if "=" not in text:
            raise click.UsageError(f"--set {text}: want NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)

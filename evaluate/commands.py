"""The commands `evaluate` and `show-matches`: parse, call, print."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    ARCH_NAMES,
    FOLDER,
    class_options,
    detection_options,
    machine_options,
    name_value_pairs,
    protocol_options,
    segmentation_options,
)

if TYPE_CHECKING:
    from ..engine.distributed import World
    from .settings import Request

TABLE_FORMATS = ("md", "html", "csv")


@click.group()
def evaluate() -> None:
    """Measure what a backbone is worth: kNN, linear, few labels, SVM, segmentation, detection.

    WEIGHTS is a run folder, a checkpoint or backbone.safetensors of ours, a torchvision or timm weight file,
    `torchvision:NAME`, `timm:NAME`, `supervised:` and one of these, or `random` (random weights, BatchNorm
    statistics from the training images; `random-untouched` without). Under 95 % of matched keys is an error.
    Segmentation and detection are the numbers that tell dense methods apart; kNN and linear are health
    checks.
    """


def common(task: str, default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options all evaluations share; the command gets a `Request` and writes result and report."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.argument("weights")
        @protocol_options(task, default)
        @click.option(
            "--like", metavar="WEIGHTS", help="Take the stem, and random weights the network, from these."
        )
        @click.option(
            "--runs",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Seeds; mean and deviation are given.",
        )
        @click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first seed.")
        @click.option(
            "--out",
            type=FOLDER,
            help=f"Result file.  [default: results/{task}-PROTOCOL-WEIGHTS-HASH.json, the hash being of all "
            "that changes the number]",
        )
        @click.option("--force", is_flag=True, help="Compute again what is there.")
        @click.option("--report/--no-report", default=True, show_default=True, help="HTML beside it.")
        @machine_options
        @click.option("--keep-checkpoints", is_flag=True, help="Keep the fine-tuned networks.")
        @functools.wraps(command)
        def wrapped(**options: Any) -> None:
            from ..engine.stop import exit_when_stopped

            first = os.environ.get("RANK", "0") == "0"
            with exit_when_stopped(lambda text: click.echo(text, err=True) if first else None):
                _evaluate(task, command, options)

        return wrapped

    return decorate


def _evaluate(task_name: str, command: Callable[..., Any], options: dict[str, Any]) -> None:
    """Make the request, let the command make its task, run it where no result of it is there, and print.

    Under torchrun every process does this; the first holds the result's place, writes and speaks.
    """
    from ..common.locks import hold_file
    from ..engine.distributed import processes
    from ..engine.stop import EXIT_STOPPED
    from .finetune import RunStopped
    from .measure import check_weights, content_of, measure
    from .processes import first_alone, together
    from .report.output import check_place, default_out, finish, finished

    given, force, report, keep = (
        options.pop(name) for name in ("out", "force", "report", "keep_checkpoints")
    )
    options["changes"] = name_value_pairs(options["changes"])
    with ExitStack() as stack:
        world = stack.enter_context(processes(options.pop("device")))
        first_alone(lambda: check_place(given, report=report))
        with together():
            request, others = _request(options, world)
            first_alone(lambda: check_weights(request))
            task = command(request, **others)
        content = first_alone(lambda: content_of(request, task))
        out = given or default_out(task_name, request.protocol, request.weights, content)
        with together():
            if world.first:
                advice = "wait for it to end, or choose another --out"
                stack.enter_context(hold_file(out, advice=advice))
        lines = first_alone(lambda: finished(out, content, force=force))
        if lines is None:
            runtime = request.runtime.replace(folder=out.with_suffix(".runs"))
            try:
                with together():
                    result, runs = measure(request.replace(runtime=runtime), task)
            except RunStopped as stopped:
                if world.first:
                    click.echo(str(stopped), err=True)
                raise SystemExit(EXIT_STOPPED) from stopped
            lines = first_alone(lambda: finish(result, runs, out, report=report, keep_checkpoints=keep))
    if world.first:
        click.echo("\n".join(lines))


def _request(options: dict[str, Any], world: World) -> tuple[Request, dict[str, Any]]:
    """The request of the shared options, and the options that are the command's own."""
    from ..common.config import build
    from ..common.terminal.progress import no_progress, show_progress
    from .settings import Request, Runtime

    shared = {*Request.model_fields, *Runtime.model_fields} & options.keys()
    others = {name: value for name, value in options.items() if name not in shared}
    how = {name: options[name] for name in ("workers", "precision")}
    how |= {"device": world.device, "progress": show_progress if world.first else no_progress}
    picked = {name: options[name] for name in shared - how.keys()}
    say = click.echo if world.first else _say_nothing
    return build(Request, {**picked, "runtime": build(Runtime, how), "say": say}), others


def _say_nothing(text: str) -> None:
    """What other processes than the first say to the user."""


@evaluate.command()
@class_options
@common("knn", "knn-dino")
def knn(request: Any, train: Path, test: Path) -> Any:
    """Nearest neighbours on frozen features: knn-dino or knn-instdisc."""
    from .classification.run import knn_task

    return knn_task(request, train=train, test=test)


def _default_to_cached(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    """Give `--protocol` another default, so that the result carries the name of what was measured."""
    if given:
        context.default_map = {"protocol": "linear-moco-cached"}


@evaluate.command()
@class_options
@click.option(
    "--cached",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_default_to_cached,
    help="Short for --protocol linear-moco-cached, a fast probe on stored features.",
)
@common("linear", "linear-moco")
def linear(request: Any, train: Path, test: Path) -> Any:
    """A linear classifier on the frozen backbone: linear-moco, linear-moco-cached, linear-mae."""
    from .classification.run import linear_task

    return linear_task(request, train=train, test=test)


@evaluate.command()
@class_options
@click.option("--list", "list_file", type=FOLDER, help="File naming the labelled images, one per line.")
@click.option("--fraction", type=float, help="Instead of a list: a fraction of each class, by the seed.")
@common("semi", "semi-finetune")
def semi(request: Any, train: Path, test: Path, list_file: Path | None, fraction: float | None) -> Any:
    """Few labels: semi-finetune (whole network) or logistic-1pct (frozen)."""
    from .classification.run import semi_task

    return semi_task(request, train=train, test=test, list_file=list_file, fraction=fraction)


@evaluate.command()
@click.option("--train", type=FOLDER, help="Class folders to learn from.")
@click.option("--test", type=FOLDER, help="Class folders to measure on.")
@click.option("--voc", type=FOLDER, help="VOC layout with classification lists instead.")
@click.option("--split", default="trainval", show_default=True, help="VOC training split.")
@click.option("--test-split", default="test", show_default=True, help="VOC test split.")
@common("svm", "svm-voc07")
def svm(
    request: Any, train: Path | None, test: Path | None, voc: Path | None, split: str, test_split: str
) -> Any:
    """One linear SVM per class: svm-voc07 or svm-voc07-lowshot (--set positives=K)."""
    from .classification.run import svm_task

    return svm_task(request, train=train, test=test, voc=voc, splits=(split, test_split))


@evaluate.command()
@segmentation_options
@common("segment", "seg-probe")
def segment(request: Any, split: str, test_split: str, **options: Any) -> Any:
    """Semantic segmentation, mIoU: seg-probe (frozen); fine-tuned FCNs and UPerNets."""
    from ..common.config import build
    from .segmentation.run import SegmentationData, segment_task

    return segment_task(request, build(SegmentationData, {"splits": (split, test_split), **options}))


@evaluate.command()
@detection_options
@common("detect", "detect-small")
def detect(request: Any, split: str, test_split: str, **options: Any) -> Any:
    """Detection and instance masks: Faster and Mask R-CNN on ResNets and pyramids, ViTDet on plain ViTs."""
    from ..common.config import build
    from .detection.run import DetectionData, detect_task

    return detect_task(request, build(DetectionData, {"splits": (split, test_split), **options}))


@evaluate.command()
@click.argument("results", type=FOLDER, nargs=-1, required=True)
@click.option("--format", "kind", type=click.Choice(TABLE_FORMATS), default="md", show_default=True)
@click.option("--out", type=FOLDER, help="Write to this file instead of the screen.")
def table(results: tuple[Path, ...], kind: str, out: Path | None) -> None:
    """One table of many result files: a row per weights, a column per protocol, parameters and data."""
    from ..common.atomic_files import atomic_write
    from .report.output import render_table

    text, warnings = render_table(results, kind)
    on_screen = out is None and kind == "md"  # whose text ends in the warnings
    for warning in () if on_screen else warnings:
        click.echo(f"warning: {warning}", err=True)
    if out is None:
        click.echo(text, nl=False)
        return
    with atomic_write(out) as part:
        part.write_text(text, encoding="utf-8")
    click.echo(f"wrote {out}")


@click.command("show-matches")
@click.argument("weights")
@click.argument("image", type=FOLDER)
@click.option("--out", type=FOLDER, default=Path("matches.png"), show_default=True, help="The picture.")
@click.option("--arch", shell_complete=ARCH_NAMES, help="Backbone, where the file does not say.")
@click.option("--stem", help="imagenet, no_pool or stride1.  [default: the file's, or by image size]")
@click.option(
    "--image-size",
    type=click.IntRange(1, 8192),
    default=224,
    show_default=True,
    help="Side of the views, pixels.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Of the two crops."
)
def show_matches(
    weights: str, image: Path, out: Path, arch: str | None, stem: str | None, image_size: int, seed: int
) -> None:
    """Draw which cells of two crops of IMAGE the backbone in WEIGHTS matches.

    WEIGHTS is as for `hapicl evaluate`. Lines join cells that choose each other by the cosine of the last
    map, as DenseCL matches them: with dots where both lie at the same place of the photograph, else
    crosses.
    """
    from ..common.atomic_files import atomic_write, refuse_unwritable
    from ..data.images.decode import read_image
    from ..models.backbones.base import require_photographs
    from ..models.weights import load_backbone
    from .report.match_pictures import find_matches, matches_picture

    refuse_unwritable(out)
    pixels = read_image(image)
    backbone, _ = load_backbone(weights, arch=arch, image_size=image_size, stem=stem)
    require_photographs(backbone, "show-matches")
    shown = find_matches(backbone, pixels, image_size=image_size, seed=seed)
    with atomic_write(out) as part:
        part.write_bytes(matches_picture(shown))
    click.echo(f"{shown.summary()}\nwrote {out}")

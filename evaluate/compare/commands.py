"""The command `compare`: parse, call, print."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..options import (
    FOLDER,
    detection_options,
    machine_options,
    name_value_pairs,
    protocol_options,
    segmentation_options,
    together,
)


@click.group()
def compare() -> None:
    """Did pretraining help? Initialisations x label fractions x seeds on your labelled images.

    Initialisations are WEIGHTS as for `hapicl evaluate`, each perhaps with a name: `random
    simclr=runs/simclr torchvision:resnet50`. Every one learns from the same label subsets for the same number
    of steps; the others are held against `random`, or --against NAME, seed by seed. The answer is in words
    with 95 % intervals, a table (md, csv, html), learning curves and costs, under --out.

    Give the same command again to go on after Ctrl-C or a spent --budget; more seeds or fractions use what is
    there. `{seed}` in WEIGHTS stands for the seed: a pretraining run for each.
    """


def comparing(task: str, default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a comparison; the command gives where the labelled data is."""
    options = together(
        click.argument("initialisations", nargs=-1, required=True, metavar="[NAME=]WEIGHTS..."),
        click.option(
            "--against", default="", metavar="NAME", help="Initialisation to compare with.  [default: random]"
        ),
        click.option(
            "--fractions", default="0.05,0.25,1", show_default=True, help="Of the labelled training images."
        ),
        click.option(
            "--seeds",
            type=click.IntRange(1),
            default=3,
            show_default=True,
            help="Under 3 nothing is decided.",
        ),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first seed."),
        click.option(
            "--budget",
            type=click.FloatRange(0),
            metavar="HOURS",
            help="Begin no cell that would end later; 0 only writes the report.  [default: all cells]",
        ),
        click.option(
            "--out",
            type=FOLDER,
            default=Path("compare"),
            show_default=True,
            help="Folder of cells and report.",
        ),
        protocol_options(task, default),
        machine_options,
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @options
        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            from ...engine.stop import exit_when_stopped

            with exit_when_stopped(lambda text: click.echo(text, err=True)):
                _compare(command, given)

        return wrapped

    return decorate


def _compare(command: Callable[..., Any], options: dict[str, Any]) -> None:
    """Measure what is missing within the budget, and write the report of what is there."""
    from ...common.config import build
    from ...common.errors import UserError
    from ...common.locks import hold_folder
    from ...common.terminal.progress import show_progress
    from ...engine.distributed import choose_device
    from ..settings import Runtime
    from .run import Plan
    from .settings import (
        CompareSettings,
        described_networks,
        differing_networks,
        named_initialisations,
        parse_fractions,
    )

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("compare runs in one process; give the command without torchrun")
    folder = options.pop("out")
    how = {name: options.pop(name) for name in ("workers", "precision")}
    how |= {"device": choose_device(options.pop("device")), "progress": show_progress}
    values = {
        name: options.pop(name) for name in ("against", "seeds", "protocol", "arch", "stem", "image_size")
    }
    values |= {
        "initialisations": named_initialisations(options.pop("initialisations")),
        "fractions": parse_fractions(options.pop("fractions")),
        "first_seed": options.pop("seed"),
        "budget_hours": options.pop("budget"),
        "changes": name_value_pairs(options.pop("changes")),
    }
    settings = build(CompareSettings, values)
    runtime = build(Runtime, how)
    with hold_folder(folder, advice="wait for it to end, or choose another --out"):
        labelled = command(settings, **options)
        for text in differing_networks(described_networks(settings)):
            click.echo(f"warning: {text}")
        _run(Plan(settings=settings, labelled=labelled, runtime=runtime, folder=folder, say=click.echo))


def _run(plan: Any) -> None:
    """Run the cells and report; the exit code says whether all are there."""
    from ...engine.stop import EXIT_STOPPED, Stopped
    from ..finetune import RunStopped
    from .outcome import compare_measured
    from .report.files import write_reports
    from .run import run_cells

    measured: dict[Any, Any] = {}
    try:
        run_cells(plan, measured)
    except (RunStopped, Stopped) as stopped:
        click.echo(str(stopped), err=True)
    left = plan.cells - len(measured)
    if measured:
        found = compare_measured(
            plan.settings,
            plan.labelled,
            measured,
            left=left,
            command=shown_command(click.get_current_context()),
        )
        files = write_reports(found, plan.folder)
        warnings = [f"warning: {text}" for text in found.warnings()]
        click.echo("\n".join(["", *found.verdicts(), *found.remarks(), *warnings, f"wrote {files[0]}"]))
    if left:
        click.echo(f"{len(measured)} of {plan.cells} cells are done; the same command goes on", err=True)
        raise SystemExit(EXIT_STOPPED)


def shown_command(context: click.Context) -> str:
    """The command line as it was given, to be copied; defaults are left out."""
    words: list[str] = []
    for parameter in context.command.params:
        assert parameter.name is not None
        source = context.get_parameter_source(parameter.name)
        if source is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params[parameter.name]
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(parameter, click.Argument):
            words = [*map(str, values), *words]
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(parameter.opts[0])
        else:
            words += [word for each in values for word in (parameter.opts[0], str(each))]
    return shlex.join(["hapicl", *context.command_path.split()[1:], *words])


@compare.command()
@segmentation_options
@comparing("segment", "seg-probe")
def segment(settings: Any, split: str, test_split: str, **options: Any) -> Any:
    """Semantic segmentation, mIoU: seg-probe (frozen, cheap, the default) or a fine-tuned network."""
    from ...common.config import build
    from ..segmentation.protocols import PROTOCOLS
    from ..segmentation.run import SegmentationData
    from .labels import segmentation_labels
    from .settings import check_request

    click.echo(check_request(settings, PROTOCOLS))
    return segmentation_labels(build(SegmentationData, {"splits": (split, test_split), **options}))


@compare.command()
@detection_options
@comparing("detect", "detect-small")
def detect(settings: Any, split: str, test_split: str, **options: Any) -> Any:
    """Detection, AP: detect-small (fine-tuned, small input, the default) or a full protocol."""
    from ...common.config import build
    from ..detection.protocols import PROTOCOLS
    from ..detection.run import DetectionData
    from .labels import detection_labels
    from .settings import check_request

    click.echo(check_request(settings, PROTOCOLS))
    return detection_labels(build(DetectionData, {"splits": (split, test_split), **options}))

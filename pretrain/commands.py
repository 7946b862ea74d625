"""The commands of stage two: parse, call, print."""

from __future__ import annotations

import os
from typing import Any

import click

from ..common.terminal.completion import completing
from ..models.backbones.names import usual_names


def _method_names() -> list[str]:
    from .methods.registry import METHODS

    return list(METHODS)


def _recipe_names() -> list[str]:
    from .config.recipe_files import recipe_names

    return recipe_names()


METHOD_NAMES, RECIPE_NAMES = completing(_method_names), completing(_recipe_names)
ARCH_NAMES = completing(usual_names)


@click.command()
@click.option("--masks", metavar="FILE", help="Mask file of `hapicl masks build`; enough by itself.")
@click.option(
    "--images", metavar="DIR", help="Folder, .tar, .zip, URL or packed .h5  [default: the mask file's]"
)
@click.option("--method", shell_complete=METHOD_NAMES, help="See `hapicl methods`.  [default: hapicl_m]")
@click.option("--arch", shell_complete=ARCH_NAMES, help="Backbone.  [default: the weights', else resnet50]")
@click.option(
    "--weights",
    metavar="FILE|RUN|NAME",
    help="Start from a weight file, a run folder, torchvision:NAME or timm:NAME.  [default: random]",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=RECIPE_NAMES,
    help="Settings from a YAML file.  [default: by method and data size]",
)
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any setting, such as optimizer.base_lr=0.05.",
)
@click.option("--epochs", type=float, help="Length of the run.")
@click.option("--steps", type=int, help="Length in optimiser steps, instead of epochs.")
@click.option("--batch-size", type=int, help="Samples of one optimiser step, over all processes.")
@click.option("--image-size", type=int, help="Side of the views, pixels.")
@click.option("--out", metavar="DIR", help="Run folder.  [default: runs/METHOD_ARCH]")
@click.option("--resume", metavar="auto|PATH", help="Continue the run in --out, or from a checkpoint.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option(
    "--missing-masks",
    type=click.Choice(["error", "skip", "instance-only"]),
    help="Images without a mask.  [default: error]",
)
@click.option("--workers", type=int, help="Loader processes of each training process.  [default: by CPUs]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--compile", "compile_", is_flag=True, default=None, help="torch.compile the backbone.")
@click.option("--profile", type=int, metavar="N", help="Trace N steps into the run folder.")
@click.option("--knn-train", metavar="DIR", help="Labelled folder (class folders) for the online kNN.")
@click.option("--knn-val", metavar="DIR", help="Labelled folder that the online kNN is tested on.")
@click.option(
    "--logger",
    "loggers",
    metavar="NAME,...",
    multiple=True,
    help="Dashboards: tensorboard, wandb, mlflow or none.  [default: tensorboard]",
)
@click.option("--dry-run", is_flag=True, help="Print settings, size and memory; train nothing.")
@click.pass_context
def pretrain(
    context: click.Context,
    /,
    *,
    overrides: tuple[str, ...],
    recipe: str | None,
    dry_run: bool,
    compile_: bool | None,
    loggers: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a backbone on images and masks.

    Exit codes: 0 done (or left by stop_after), 2 a mistake in input or settings, a full disk or memory (in
    the midst of training after a checkpoint of the last whole step), 3 the loss was not finite, 75 stopped
    by SIGTERM, SIGINT or SIGUSR1, from the first step on after a checkpoint (continue with --resume auto).

    Several GPUs: torchrun --standalone --nproc-per-node N -m hapicl pretrain ...
    """
    from ..engine.stop import EXIT_STOPPED, exit_when_stopped

    given = {name: value for name, value in options.items() if value is not None}
    if compile_:
        given["compile"] = True
    if loggers:
        given["logger"] = ",".join(loggers)
    with exit_when_stopped(lambda text: click.echo(text, err=True)):  # also while torch is being imported
        stopped_by = _pretrain(context, given, recipe, overrides, dry_run=dry_run)
    if stopped_by not in {None, "stop_after"}:
        context.exit(EXIT_STOPPED)


def _pretrain(
    context: click.Context,
    given: dict[str, Any],
    recipe: str | None,
    overrides: tuple[str, ...],
    *,
    dry_run: bool,
) -> str | None:
    """Train, or say what would be trained; gives what stopped it."""
    from ..engine.guard import NonFiniteLossError
    from ..engine.stop import EXIT_NOT_FINITE
    from .config.resolve import resolve

    settings, notes = resolve(given, recipe=recipe, overrides=overrides)
    for note in notes if int(os.environ.get("RANK", "0")) == 0 else []:
        click.echo(note, err=True)
    if dry_run:
        from .diagnose.dry_run import dry_run_report

        click.echo(dry_run_report(settings))
        return None
    from .train import pretrain as run

    try:
        return run(settings).stopped_by
    except NonFiniteLossError as error:
        click.echo(f"error: {error}", err=True)
        context.exit(EXIT_NOT_FINITE)


@click.command()
@click.option("--masks", type=click.Path(), help="Mask file made by `hapicl masks build`.")
@click.option(
    "--images", type=click.Path(), help="Image folder or packed file, if not where the masks were made."
)
@click.option("--method", shell_complete=METHOD_NAMES, help="What would be trained.  [default: hapicl_m]")
@click.option("--arch", shell_complete=ARCH_NAMES, help="Backbone.")
@click.option("--image-size", type=int, help="Side of the views, pixels.")
@click.option(
    "--batch-size", type=int, help="Samples of a step.  [default: the recipe's, at most all images]"
)
@click.option("--workers", type=int, help="Loader processes.  [default: by the CPUs at hand]")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option(
    "--missing-masks", type=click.Choice(["error", "skip", "instance-only"]), help="As for pretrain."
)
@click.option(
    "--samples", type=click.IntRange(1), default=96, show_default=True, help="Images timed stage by stage."
)
def doctor(samples: int, **options: Any) -> None:
    """Time every stage of training on your images and machine, and name the slowest."""
    from .config.resolve import resolve
    from .diagnose.doctor import as_text, diagnose

    settings, notes = resolve({key: value for key, value in options.items() if value is not None})
    for note in notes:
        click.echo(note, err=True)
    diagnosis = diagnose(settings, samples=samples, progress=lambda note: click.echo(note, err=True))
    click.echo(as_text(diagnosis))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", default="report.html", show_default=True, metavar="FILE", help="The page.")
@click.option("--images", metavar="DIR", help="Folder for the feature pictures  [default: the run's images]")
def report(runs: tuple[str, ...], out: str, images: str | None) -> None:
    """Compare runs on one self-contained page: curves, settings that differ, crops and features."""
    from .report.page import write_report

    write_report(list(runs), out, images=images)
    click.echo(f"wrote {out}")


@click.command()
def methods() -> None:
    """List the methods, what each needs, and its source."""
    from rich.table import Table

    from ..common.terminal.printable import console
    from .methods.registry import method_rows

    table = Table("method", "needs", "backbone", "source")
    for column in table.columns[:3]:
        column.no_wrap = True
    for row in method_rows():
        table.add_row(*row)
    console().print(table)

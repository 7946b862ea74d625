"""The `hapicl doctor` command: parse, call, print."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.option("--masks", type=click.Path(), help="Mask file made by `hapicl masks build`.")
@click.option(
    "--images", type=click.Path(), help="Image folder or packed file, if not where the masks were made."
)
@click.option("--method", help="What would be trained.  [default: hapicl_m]")
@click.option("--arch", help="Backbone.")
@click.option("--image-size", type=int, help="Side of the views, pixels.")
@click.option(
    "--batch-size", type=int, help="Samples of a step.  [default: the recipe's, at most all images]"
)
@click.option("--workers", type=int, help="Loader processes.  [default: by the CPUs at hand]")
@click.option("--device", help="cpu, cuda, ...  [default: a GPU if there is one]")
@click.option(
    "--missing-masks", type=click.Choice(["error", "skip", "instance-only"]), help="As for pretrain."
)
@click.option(
    "--samples", type=click.IntRange(1), default=96, show_default=True, help="Images timed stage by stage."
)
def doctor(samples: int, **options: Any) -> None:
    """Time every stage of training on your images and machine, and say which one is the wall."""
    from .doctor import diagnose, report
    from .resolve import resolve

    settings, notes = resolve({key: value for key, value in options.items() if value is not None})
    for note in notes:
        click.echo(note, err=True)
    click.echo(report(diagnose(settings, samples=samples, say=lambda note: click.echo(note, err=True))))

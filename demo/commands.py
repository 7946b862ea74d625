"""The demo's command: parse, call, print."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--out", default="demo-output", show_default=True, metavar="DIR", help="Folder for everything it makes."
)
@click.option("--small", is_flag=True, help="Fewer pictures and steps: a check that it runs.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**31), help="Other collages, another run."
)
def demo(out: str, small: bool, seed: int) -> None:
    """Show both stages on a small folder made offline, and end with a report to look at.

    Makes an image folder from photographs that ship with scikit-image and scikit-learn, finds masks and
    scores them, pretrains ResNet-18 for some minutes on whatever device is there, measures on other collages
    what it learnt, and writes report.html.
    Nothing is downloaded. Running it again in the same folder makes everything anew.
    """
    from pathlib import Path

    from ..common.locks import hold_folder
    from .run import run_demo

    with hold_folder(Path(out), advice="wait for it to end, or choose another --out"):
        run_demo(out, small=small, seed=seed)

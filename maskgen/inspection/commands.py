"""The `hapicl masks` commands that look at a mask file: info, show, verify, score; heavy imports inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ...common.errors import UserError
from ...common.terminal.progress import show_totals

images_option = click.option("--images", metavar="DIR", help="Image folder, archives or URL, if moved.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
against_option = click.option(
    "--against",
    metavar="MASKS",
    type=click.Path(path_type=Path),
    help="Compare with this mask file of the same images.",
)
masks_argument = click.argument("masks_file", metavar="MASKS", type=click.Path(path_type=Path))


@click.command()
@masks_argument
@json_option
def info(masks_file: Path, as_json: bool) -> None:
    """Say what a mask file holds and how it was made."""
    from ...data.masks.reader import MaskReader
    from .info import describe_file, file_facts

    reader = MaskReader(masks_file)
    if as_json:
        click.echo(json.dumps(file_facts(reader), indent=1))
    else:
        print_table(describe_file(reader))


@click.command()
@masks_argument
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Picture (.png) or page (.html) to write."
)
@images_option
@click.option(
    "--sample", default=24, show_default=True, type=click.IntRange(1), help="How many random images."
)
@click.option(
    "--paths", multiple=True, help="Show this image instead, relative to the image folder; may be repeated."
)
@click.option("--seed", default=0, show_default=True, type=int, help="Draws another sample.")
@against_option
def show(masks_file: Path, out: Path, against: Path | None, **options: Any) -> None:
    """Show masks on their images, as a picture or as a self-contained page.

    With --against: the images whose masks differ most in two files, under both masks.
    """
    if against is not None and out.suffix in (".png", ".html", ".htm"):
        from .compare import show_comparison

        found = show_comparison(masks_file, against, out, images=options["images"], paths=options["paths"])
        print_table(found.rows())
    elif out.suffix == ".png":
        from .gallery import gallery_png

        gallery_png(masks_file, out, **options)
    elif out.suffix in (".html", ".htm"):
        from .page import gallery_page

        gallery_page(masks_file, out, **options)
    else:
        raise UserError(f"--out {out}: give a name that ends in .png or .html")
    click.echo(f"wrote {out}")


@click.command()
@masks_argument
@click.option("--images", metavar="DIR", help="Compare with the images in this folder too.")
@json_option
def verify(masks_file: Path, images: str | None, as_json: bool) -> None:
    """Check digests, every mask and, with --images, every image size; exits with 1 if something is wrong."""
    from .verify import verify_masks

    with show_totals("verify") as progress:
        report = verify_masks(masks_file, images, progress=lambda done, total: progress(done, total, 0))
    if as_json:
        click.echo(json.dumps(vars(report), indent=1))
    else:
        for problem in report.problems:
            click.echo(problem)
        new = f", {len(report.new_images)} new images without a mask" if report.new_images else ""
        click.echo(
            f"{report.rows} rows, {report.masks} masks and {report.images} image sizes checked: "
            f"{len(report.problems)} problems{new}"
        )
    if report.problems:
        sys.exit(1)


@click.command()
@masks_argument
@click.option("--truth", type=click.Path(path_type=Path), help="Folder of true masks, matched by stem.")
@against_option
@click.option("--saliency", type=click.Path(path_type=Path), help="Folder of grey saliency maps to score.")
@click.option(
    "--images",
    metavar="DIR",
    help="Image folder: score the saliency computed again from it.",
)
@click.option(
    "--network",
    type=click.Path(path_type=Path),
    help="With --images and refined masks: the network beside them.",
)
@json_option
def score(masks_file: Path, truth: Path | None, against: Path | None, as_json: bool, **options: Any) -> None:
    """Score masks against the truth: IoU, F-beta (beta squared 0.3), MAE, S-measure.

    With --against: how two files differ; with --truth too, the scores of both.
    """
    if against is not None:
        _score_two(masks_file, against, truth, as_json)
        return
    if truth is None:
        raise click.UsageError("give --truth DIR, --against MASKS, or both")
    from .score import score_masks

    scores = score_masks(masks_file, truth, **options)
    if as_json:
        click.echo(json.dumps(vars(scores), indent=1))
        return
    print_table([(name, f"{value:.4f}") for name, value in scores.mean.items()])
    click.echo(f"{len(scores.images)} images, {len(scores.without_mask)} of them without a mask")


def _score_two(first: Path, second: Path, truth: Path | None, as_json: bool) -> None:
    """Print how two files differ and, where there is a truth, what each scores."""
    from ...data.masks.reader import MaskReader
    from .compare import compare_masks
    from .score import score_masks

    found = compare_masks(MaskReader(first), MaskReader(second))
    means = [] if truth is None else [score_masks(file, truth).mean for file in (first, second)]
    if as_json:
        click.echo(json.dumps({**found.as_dict(), "scores": means}, indent=1))
        return
    rows = found.rows()
    if means:
        rows += [
            (name, f"{value:.4f} -> {means[1][name]:.4f} ({means[1][name] - value:+.4f})")
            for name, value in means[0].items()
        ]
    print_table(rows)
    for path, agreement in found.largest:
        click.echo(f"  {agreement:.2f}  {path}")


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print names and values as a table without colour when it is not read on a terminal."""
    from rich.table import Table

    from ...common.terminal.printable import console, printable

    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, printable(value))
    console().print(table)

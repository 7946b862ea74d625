"""The command `embed`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import ARCH_NAMES, FOLDER

if TYPE_CHECKING:
    from .embed import EmbedSummary

NEIGHBOURS, THRESHOLD = 8, 0.98


@click.command()
@click.argument("weights")
@click.option("--images", metavar="DIR", required=True, help="Folder, .tar, .zip, URL or packed .h5.")
@click.option("--out", type=FOLDER, default=Path("features.npz"), show_default=True, help=".npz or .parquet.")
@click.option("--maps", is_flag=True, help="The last map of each image instead of one vector.")
@click.option(
    "--vector",
    type=click.Choice(["auto", "mean", "class"]),
    default="auto",
    show_default=True,
    help="Mean over the map's cells, or a ViT's class token; auto: as the method is evaluated.",
)
@click.option(
    "--image-size", type=click.IntRange(1), help="Centre crop, pixels.  [default: as in training, else 224]"
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--arch", shell_complete=ARCH_NAMES, help="Backbone, where the file does not say.")
@click.option("--stem", help="imagenet, no_pool or stride1.  [default: the file's, or by image size]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images."
)
@click.option("--show", type=FOLDER, help="Page with nearest neighbours and near-duplicates.")
@click.option("--neighbours", type=click.IntRange(1, 64), help=f"On the page.  [default: {NEIGHBOURS}]")
@click.option(
    "--duplicates",
    type=click.FloatRange(-1, 1, max_open=True),
    help=f"Cosine above which two images are near-duplicates.  [default: {THRESHOLD}]",
)
def embed(
    weights: str,
    images: str,
    out: Path,
    device: str,
    workers: int,
    show: Path | None,
    neighbours: int | None,
    duplicates: float | None,
    **taken: Any,
) -> None:
    """Write a vector or a map for every image, and show which images are near each other.

    WEIGHTS is a run folder, or weights as for `hapicl evaluate`. Run it again after an interruption and it
    goes on where it stopped.
    """
    from ...common.atomic_files import refuse_unwritable
    from ...common.config import build
    from ...common.terminal.progress import show_totals
    from ...engine.distributed import choose_device
    from .embed import EmbedSettings
    from .embed import embed as embed_images

    if show is None and (neighbours is not None or duplicates is not None):
        raise click.UsageError("--neighbours and --duplicates are of a page: give --show PAGE.html")
    if show is not None and taken["maps"]:
        raise click.UsageError("--show compares vectors: leave --maps out")
    if show is not None:
        refuse_unwritable(show)
    settings = build(EmbedSettings, taken)
    with show_totals("features") as progress:
        done = embed_images(
            weights, images, out, settings, workers=workers, device=choose_device(device), progress=progress
        )
    _tell(done)
    if show is not None:
        _show(
            done.path, images, show, neighbours or NEIGHBOURS, THRESHOLD if duplicates is None else duplicates
        )


def _tell(done: EmbedSummary) -> None:
    """What was written, and which images are not in it."""
    from ...common.terminal.printable import printable_name

    click.echo(done.line)
    state = "was already finished" if done.already_finished else "written"
    each = " x ".join(map(str, done.shape))
    click.echo(f"{done.path} {state}: {done.images} images, {each} numbers each")
    if done.unreadable:
        click.echo(f"cannot be read and have no features, all listed in the file: {len(done.unreadable)}")
        for path, reason in list(done.unreadable.items())[:10]:
            click.echo(f"  {printable_name(path)}: {reason}")


def _show(features: Path, images: str, show: Path, neighbours: int, threshold: float) -> None:
    """Write the page and the list of near-duplicates beside it."""
    from ...common.atomic_files import atomic_write
    from ...common.terminal.progress import show_progress
    from ...data.images import open_images
    from .files import read_features
    from .page import show_neighbours

    found = read_features(features)
    with show_progress("comparing images", len(found.paths)) as advance:
        shown = show_neighbours(
            found, open_images(images), k=neighbours, threshold=threshold, advance=advance
        )
    listed = show.with_suffix(".duplicates.csv")
    for path, text in ((listed, shown.duplicates), (show, shown.html)):
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    click.echo(f"{shown.summary}, listed in {listed}")
    click.echo(f"wrote {show}")

"""The `hapicl masks` commands: parse, call, print. Heavy imports stand inside the commands."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..common.errors import UserError
from ..common.terminal.progress import show_totals
from .inspection.commands import (
    info,
    masks_argument,
    print_table,
    score,
    show,
    verify,
)

if TYPE_CHECKING:
    from .building.build import BuildSummary
    from .building.worker import RowMaker

_FAILURES_LISTED = 10


class ShardType(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """`i/n`, from 1/n to n/n."""

    name = "i/n"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, int]:
        """Parse, or fail with what is expected."""
        match = re.fullmatch(r"(\d+)/(\d+)", str(value))
        if match is None:
            self.fail(f"{value!r} is not of the form i/n, such as 3/16", param, context)
        return int(match[1]), int(match[2])


@click.group()
def masks() -> None:
    """Stage one: find the foreground of every image, once."""


for _command in (info, show, verify, score):
    masks.add_command(_command)


@masks.command()
@click.option(
    "--images", required=True, metavar="DIR", help="Image folder, flat or nested; or .tar, .zip, a URL."
)
@click.option(
    "--out",
    default=Path("masks.h5"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Mask file to write.",
)
@click.option("--recipe", help="How masks are made: fast, quality, ...  [default: quality]")
@click.option(
    "--network",
    type=click.Path(path_type=Path),
    help="Network of `masks refine` that takes part, instead of a recipe.",
)
@click.option(
    "--bands", metavar="R,G,B", help="Three bands of TIFF files to take for red, green and blue, from 1."
)
@click.option(
    "--band-range", metavar="LOW,HIGH", help="Values that become black and white.  [default: the type's]"
)
@click.option("--workers", type=int, help="Processes.  [default: cores this process may use]")
@click.option("--limit", type=int, help="Only the first so many images.")
@click.option(
    "--backend",
    default="loky",
    show_default=True,
    type=click.Choice(["loky", "dask", "ray"]),
    help="Where workers run.",
)
@click.option("--scheduler", help="Address of a running dask or ray cluster.")
@click.option(
    "--shard",
    type=ShardType(),
    help="Make the i-th of n shards only (SLURM arrays); join them with `masks merge`.",
)
@click.option(
    "--update", is_flag=True, help="Add new and changed images to an existing file, drop those gone."
)
@click.option("--strict", is_flag=True, help="Exit with 1 if an image has no mask.")
def build(
    images: str,
    out: Path,
    recipe: str | None,
    network: Path | None,
    bands: str | None,
    band_range: str | None,
    strict: bool,
    **options: Any,
) -> None:
    """Build the mask file of an image folder.

    Stop it with Ctrl-C or lose the machine: the same command continues.
    """
    began = time.monotonic()  # the imports compile kernels the first time, which is time the user waits
    from ..common.config import build as build_settings
    from ..data.images import open_originals
    from .building.build import BuildInterrupted, build_rows
    from .building.settings import BuildSettings

    settings = build_settings(BuildSettings, options)
    opened = open_originals(images)
    paths = opened.paths()  # before kernels are compiled: a mistyped folder is told at once
    of_bands = {"bands": bands, "band_range": band_range}
    maker = _row_maker(recipe, network, {name: text for name, text in of_bands.items() if text is not None})
    try:
        with show_totals("masks") as progress:
            summary = build_rows(opened, out, maker, settings, paths=paths, progress=progress)
    except BuildInterrupted as interruption:
        click.echo(str(interruption), err=True)
        sys.exit(128 + interruption.number)
    _print_summary(dataclasses.replace(summary, seconds=time.monotonic() - began))
    if strict and summary.failures:
        sys.exit(1)


def _row_maker(recipe: str | None, network: Path | None, of_bands: dict[str, str]) -> RowMaker:
    """What makes the masks: a recipe by name, of photographs or of bands, or a network's file."""
    if network is None:
        from .building.recipe_rows import RecipeRows
        from .recipes import get_recipe

        return RecipeRows(get_recipe(recipe or "quality").replace(**of_bands))
    if of_bands:
        raise click.UsageError("--network is of photographs; leave out --bands and --band-range")
    if recipe is not None:
        raise click.UsageError("--network brings its own recipe; leave out --recipe")
    from .refinement.prediction import NetworkRows, open_network

    return NetworkRows(open_network(network))


@masks.command()
@masks_argument
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write, new or empty.")
@click.option("--stored-size", is_flag=True, help="Masks as stored instead of at their images' size.")
def export(masks_file: Path, out: Path, stored_size: bool) -> None:
    """Write every mask as a PNG of 0 and 255, in folders like the images'."""
    from ..data.masks.reader import MaskReader
    from .exchange.tree import export_tree

    written, total = 0, len(MaskReader(masks_file))
    with show_totals("export") as progress:
        for _ in export_tree(masks_file, out, stored_size=stored_size):
            written += 1
            progress(written, total, 0)
    click.echo(f"wrote {written} masks to {out}; {total - written} images have none")


@masks.command()
@click.option("--images", required=True, metavar="DIR", help="Image folder of the first masks.")
@click.option(
    "--masks",
    "masks_file",
    required=True,
    type=click.Path(path_type=Path),
    help="First masks, from `masks build`.",
)
@click.option(
    "--out",
    default=Path("refined.h5"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Mask file to write.",
)
@click.option(
    "--rounds", type=int, help="Rounds of training, each on the masks of the one before.  [default: 2]"
)
@click.option("--train-images", type=int, help="Images to learn from; all get masks.  [default: 2000]")
@click.option("--encoder", metavar="WEIGHTS", help="Weights of a backbone to start from.  [default: none]")
@click.option(
    "--device", default="auto", show_default=True, help="Where to train: auto, cpu, cuda, cuda:N or mps."
)
@click.option("--epochs", type=int, help="How often a round sees each image.")
@click.option("--image-size", type=int, help="Side of the network's input, pixels.  [default: 128]")
@click.option("--seed", type=int, help="Of weights and draws.  [default: 0]")
@click.option("--workers", type=int, help="Processes that make masks.  [default: cores this process may use]")
def refine(
    images: str, masks_file: Path, out: Path, device: str, workers: int | None, **options: Any
) -> None:
    """Learn from the first masks what your images' foreground looks like, and make better ones.

    No labels and no downloads: a small network is trained on the first masks, and what it says joins the map
    that the masks are cut from. The network is saved beside the masks; `masks build --network` applies it to
    other images. Stop it with Ctrl-C or lose the machine: the same command continues.
    """
    from ..common.config import build as build_settings
    from .building.build import BuildInterrupted
    from .building.settings import BuildSettings
    from .refinement.refine import refine_masks
    from .refinement.settings import RefineSettings

    given = {name: value for name, value in options.items() if value is not None}
    try:
        summary = refine_masks(
            images,
            masks_file,
            out,
            build_settings(RefineSettings, given),
            build_settings(BuildSettings, {"workers": workers}),
            device=device,
            say=lambda text: click.echo(text, err=True),
            bar=show_totals,
        )
    except BuildInterrupted as interruption:
        click.echo(str(interruption), err=True)
        sys.exit(128 + interruption.number)
    _print_summary(summary.build)
    if summary.kept_because:
        click.echo(f"the first masks are kept as they are: {summary.kept_because}")
    else:
        click.echo(f"network: {summary.network}; `hapicl masks build --network` applies it to other images")


@masks.command("import")
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of PNG or npz masks, or COCO JSON.",
)
@click.option("--images", required=True, metavar="DIR", help="Image folder, archives or URL.")
@click.option(
    "--out",
    default=Path("masks.h5"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Mask file to write.",
)
@click.option("--long-side", type=click.IntRange(1), help="Reduce larger masks to this long side, pixels.")
@click.option("--workers", type=int, help="Processes.  [default: cores this process may use]")
def import_masks(source: Path, images: str, out: Path, long_side: int | None, workers: int | None) -> None:
    """Make a mask file from masks made elsewhere."""
    if source.suffix == ".json":
        from ..common.atomic_files import refuse_unwritable
        from .building.plan import PartFiles
        from .exchange.coco import import_coco

        refuse_unwritable(out)
        with PartFiles(out).locked():  # as a build of `out` does
            _print_summary(import_coco(source, images, out, long_side=long_side))
        return
    from ..common.config import build as build_settings
    from .building.settings import BuildSettings
    from .exchange.tree import import_tree

    settings = build_settings(BuildSettings, {"workers": workers})
    with show_totals("import") as progress:
        summary = import_tree(source, images, out, long_side=long_side, settings=settings, progress=progress)
    _print_summary(summary)


@masks.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out",
    default=Path("masks.h5"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Mask file to write.",
)
@click.option("--images", help="Image folder to record, where the sources name different ones.")
def merge(sources: tuple[Path, ...], out: Path, images: str | None) -> None:
    """Join shards, or mask files.

    Without SOURCES: the part files that `masks build --shard` left beside OUT. With SOURCES: mask
    files, or .parts folders, made by one recipe.
    """
    from .building.merge import join_part_files, merge_files
    from .building.plan import PartFiles

    if sources:
        rows = merge_files(out, sources, image_root=images)
    else:
        parts = PartFiles(out)
        if parts.plan() is None:
            raise UserError(
                f"{parts.path} holds no part files; run `hapicl masks build --shard i/n --out {out}` first"
            )
        with parts.locked():
            rows = join_part_files(out, parts)
            parts.remove()
    click.echo(f"wrote {out}: {rows} images")


def _print_summary(summary: BuildSummary) -> None:
    """Print what a build did, and the first failures."""
    from ..common.terminal.printable import printable_name

    missing = summary.missing_part_files
    if missing or not summary.counts:
        state = (
            f"part files that other shards have still to make: {missing}; then"
            if missing
            else ("all part files are there:")
        )
        click.echo(
            f"{summary.built} images in {summary.seconds:.1f} s; {state} join them with "
            f"`hapicl masks merge --out {summary.out}`"
        )
        return
    if summary.already_finished:
        click.echo(f"{summary.out} is already finished")
    rows = [("images", str(summary.images))]
    rows += [(name.replace("_", " "), str(amount)) for name, amount in summary.counts.items() if amount]
    if summary.built:
        rate = summary.built / summary.seconds
        rows.append(("time", f"{summary.seconds:.1f} s for {summary.built} images, {rate:.1f} images/s"))
    rows.append(("file", f"{summary.out}, {summary.out.stat().st_size:,} bytes"))
    print_table(rows)
    for path, reason in list(summary.failures.items())[:_FAILURES_LISTED]:
        click.echo(f"  {printable_name(path)}: {reason}")
    if len(summary.failures) > _FAILURES_LISTED:
        more = len(summary.failures) - _FAILURES_LISTED
        click.echo(f"  ... and {more} more: `hapicl masks show {summary.out} --out masks.html` lists them")

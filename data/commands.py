"""The `hapicl data` commands: parse, call, print. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Prepare images for training."""


@data.command()
@click.option("--images", required=True, metavar="DIR", help="Image folder, archives or URL.")
@click.option(
    "--out",
    default=Path("images.h5"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="File to write.",
)
@click.option(
    "--short-side",
    type=int,
    help="Store larger images at this short side, in pixels.  [default: keep every file's own bytes]",
)
@click.option("--quality", default=90, show_default=True, help="JPEG quality of what is encoded anew.")
@click.option("--workers", type=int, help="Processes.  [default: cores this process may use]")
def pack(images: str, out: Path, short_side: int | None, quality: int, workers: int | None) -> None:
    """Pack an image folder into one file, for network disks and millions of small files.

    `hapicl pretrain --images images.h5` then reads it and draws the same crops. Run it again after an
    interruption and it goes on where it stopped.
    """
    from ..common.config import build
    from ..common.terminal.printable import printable_name
    from ..common.terminal.progress import show_totals
    from .images.pack_build import PackSettings, pack_images

    settings = build(PackSettings, {"short_side": short_side, "quality": quality})
    with show_totals("packing") as progress:
        summary = pack_images(
            images, out, settings, workers=workers, progress=lambda done, total: progress(done, total, 0)
        )
    state = "was already finished" if summary.already_finished else "written"
    click.echo(f"{out} {state}: {summary.images} images, {summary.size / 2**20:.1f} MiB")
    if summary.unreadable:
        click.echo(f"{len(summary.unreadable)} images cannot be decoded and were left out:")
        for path, reason in list(summary.unreadable.items())[:10]:
            click.echo(f"  {printable_name(path)}: {reason}")

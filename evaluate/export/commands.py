"""The command `export`: parse, call, print."""

from __future__ import annotations

from pathlib import Path

import click

from ...common.terminal.completion import completing
from ..options import ARCH_NAMES, FOLDER

EXPORT_TARGETS = ("torchvision", "timm", "detectron2", "safetensors")


@click.command()
@click.argument("weights")
@click.option(
    "--to",
    "target",
    required=True,
    shell_complete=completing(lambda: EXPORT_TARGETS),
    help="torchvision, timm, detectron2 or safetensors.",
)
@click.option("--out", type=FOLDER, help="File.  [default: backbone-TARGET beside the weights]")
@click.option("--arch", shell_complete=ARCH_NAMES, help="Backbone, where the file does not say.")
def export(weights: str, target: str, out: Path | None, arch: str | None) -> None:
    """Write a backbone for another library, and check that it loads there.

    WEIGHTS is a run folder, or a weight file as for `hapicl evaluate`.
    """
    from .export import export_backbone

    path = Path(weights)
    place = out or (path if path.is_dir() else path.parent) / f"backbone-{target}"
    written, matched = export_backbone(weights, target, place, arch=arch)
    click.echo(matched)
    click.echo(f"wrote {written.path} ({written.keys} keys, read back and compared). To use it:")
    click.echo(written.usage)

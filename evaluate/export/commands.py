"""The command `export`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...common.terminal.completion import completing
from ..options import ARCH_NAMES, FOLDER

EXPORT_TARGETS = ("torchvision", "timm", "detectron2", "safetensors", "hub", "onnx")
ONLY = {  # options that one target alone has
    "results": "hub",
    "license": "hub",
    "push": "hub",
    "gives": "onnx",
    "image_size": "onnx",
}


@click.command()
@click.argument("weights")
@click.option(
    "--to",
    "target",
    required=True,
    shell_complete=completing(lambda: EXPORT_TARGETS),
    help="torchvision, timm, detectron2, safetensors (a file), hub (a folder with a model card), or onnx.",
)
@click.option("--out", type=FOLDER, help="File or folder.  [default: backbone-TARGET beside the weights]")
@click.option("--arch", shell_complete=ARCH_NAMES, help="Backbone, where the file does not say.")
@click.option(
    "--results",
    type=FOLDER,
    multiple=True,
    help="hub: a result of `hapicl evaluate` for the card.  [default: those beside the run]",
)
@click.option("--license", help="hub: licence of the weights, such as cc-by-4.0.  [default: not stated]")
@click.option("--push", metavar="NAME", help="hub: send it to this Hugging Face repository, private if new.")
@click.option(
    "--gives", type=click.Choice(["vector", "maps"]), help="onnx: what it gives.  [default: vector]"
)
@click.option("--image-size", type=click.IntRange(1, 8192), help="onnx: pixels.  [default: as in training]")
def export(weights: str, target: str, out: Path | None, arch: str | None, **special: Any) -> None:
    """Write a backbone for another library, and check that it loads there.

    WEIGHTS is a run folder, or a weight file as for `hapicl evaluate`.
    """
    special = {name: value for name, value in special.items() if value}
    for name in special:
        if target != ONLY[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} is of --to {ONLY[name]}")
    path = Path(weights)
    place = out or (path if path.is_dir() else path.parent) / f"backbone-{target}"
    if target == "hub":
        _to_hub(weights, place, arch, **special)
        return
    from .export import export_backbone

    if target == "onnx":
        from .onnx_graph import export_onnx

        written, matched = export_onnx(weights, place, arch=arch, **special)
    else:
        written, matched = export_backbone(weights, target, place, arch=arch)
    click.echo(matched)
    click.echo(f"wrote {written.path} ({written.keys} keys, read back and compared). To use it:")
    click.echo(written.usage)


def _to_hub(weights: str, out: Path, arch: str | None, push: str | None = None, **about: Any) -> None:
    """Write the folder, and send it where that is wanted."""
    from .hub import CARD, export_hub
    from .push import log_in, push_folder

    api = log_in() if push else None  # before the work
    written, matched = export_hub(weights, out, arch=arch, name=push, **about)
    click.echo(matched)
    click.echo(f"wrote {written.path} ({written.keys} keys, read back by timm and compared) with {CARD}:")
    click.echo("read the card before you publish it. To use the folder:")
    click.echo(written.usage)
    if push:
        click.echo(f"sent to {push_folder(api, written.path, push)}")

"""Hooks of the documentation's build: the reference is read from this checkout, installed or not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

_linked: list[tempfile.TemporaryDirectory[str]] = []  # kept until the build ends


@event_priority(100)  # before mkdocstrings reads where the code is
def on_config(config: Any) -> Any:
    """Show mkdocstrings the root of this checkout under the package's name, whatever the folder is called.

    It reads the files and imports nothing, so neither hapicl nor torch need to be installed.
    """
    folder = tempfile.TemporaryDirectory(prefix="hapicl-docs-")
    _linked.append(folder)
    root = Path(config["config_file_path"]).resolve().parent
    (Path(folder.name) / "hapicl").symlink_to(root, target_is_directory=True)
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [folder.name]
    return config


def on_post_build(config: Any) -> None:
    """Remove the link."""
    while _linked:
        _linked.pop().cleanup()

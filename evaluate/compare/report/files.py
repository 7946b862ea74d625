"""What a comparison leaves besides its cells: compare.html, compare.md, compare.csv and compare.json."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from ....common.atomic_files import atomic_write
from ...result import code_version
from ..outcome import Comparison
from ..settings import as_json
from .page import comparison_page
from .table import comma_separated, markdown

FORMAT = 1
NAME = "compare"  # of the files, below the output folder


def write_reports(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the page, the tables and everything they show as JSON; gives the files, the page first."""
    texts = {
        "html": comparison_page(comparison),
        "md": markdown(comparison),
        "csv": comma_separated(comparison),
        "json": json.dumps(comparison_record(comparison, folder), indent=1) + "\n",
    }
    files = []
    for suffix, text in texts.items():
        file = folder / f"{NAME}.{suffix}"
        with atomic_write(file) as part:
            part.write_text(text, encoding="utf-8")
        files.append(file)
    return files


def comparison_record(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """The comparison as JSON has it; shares in [0, 1], seconds, GiB."""
    cells = [
        {
            "initialisation": cell.initialisation,
            "fraction": cell.fraction,
            "seed": cell.seed,
            "value": found.value,
            "seconds": found.seconds,
            "peak_memory_gib": found.peak_gib,
            "file": str(found.file.relative_to(folder)),
        }
        for cell, found in sorted(comparison.measured.items())
    ]
    example = comparison.example
    return {
        "format": FORMAT,
        "command": comparison.command,
        "settings": as_json(comparison.settings),
        "headline": comparison.headline,
        "parameters": example["parameters"],
        "data": {name: example["data"][name] for name in ("unlabelled", "test")},
        "labelled_images": {str(fraction): images for fraction, images in comparison.images.items()},
        "verdicts": comparison.verdicts(),
        "remarks": comparison.remarks(),
        "warnings": comparison.warnings(),
        "comparisons": [
            dataclasses.asdict(finding) | {"verdict": finding.verdict} for finding in comparison.findings
        ],
        "cells": cells,
        "cells_left": comparison.left,
        "code_version": code_version(),
        "hardware": example["hardware"],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }

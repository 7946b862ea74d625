"""What a mask file says of itself, as a table and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...data.masks.format import STATUSES
from ...data.masks.reader import MaskReader
from .gallery import masked_rows


def file_facts(reader: MaskReader) -> dict[str, Any]:
    """Return everything a mask file records of the whole, ready for JSON."""
    amounts = np.bincount(reader.column("status"), minlength=len(STATUSES)).tolist()
    rows = masked_rows(reader)
    coverage = np.asarray(reader.column("coverage")[rows], np.float64)
    confidence = np.asarray(reader.column("confidence")[rows], np.float64)
    known = confidence[~np.isnan(confidence)]
    seconds = float(reader.attributes["worker_seconds"])
    return {
        **reader.attributes,
        "path": reader.path,
        "images": len(reader),
        "counts": {status.value: amount for status, amount in zip(STATUSES, amounts, strict=True)},
        "bytes": Path(reader.path).stat().st_size,
        "bytes_per_mask": len(reader.column("blob")) / len(rows) if len(rows) else None,
        "mean_coverage": float(coverage.mean()) if len(rows) else None,
        "mean_confidence": float(known.mean()) if len(known) else None,
        "images_per_second_per_core": len(reader) / seconds if seconds else None,
    }


def describe_file(reader: MaskReader) -> list[tuple[str, str]]:
    """Return the facts as rows of (name, text)."""
    facts = file_facts(reader)
    recipe = facts["recipe"]
    counts = ", ".join(f"{amount} {name}" for name, amount in facts["counts"].items() if amount)
    table = [
        ("file", f"{facts['path']}, {facts['bytes']:,} bytes"),
        ("images", f"{facts['images']:,}: {counts}" + ("" if facts["complete"] else " (build not finished)")),
        ("image folder", str(facts["image_root"])),
        ("recipe", ", ".join(f"{key}={value}" for key, value in recipe.items())),
        ("created", str(facts["created"])),
        ("libraries", ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())),
        ("content digest", str(facts["content_digest"])),
    ]
    for name, text, form in (
        ("bytes_per_mask", "bytes per mask", "{:.0f}"),
        ("mean_coverage", "mean coverage", "{:.3f}"),
        ("mean_confidence", "mean confidence", "{:.3f}"),
        ("images_per_second_per_core", "images per second and worker", "{:.1f}"),
    ):
        if facts[name] is not None:
            table.append((text, form.format(facts[name])))
    return table

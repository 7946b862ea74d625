"""What a small recipe says of itself under `about.measured`, made from the numbers of the claims table."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from claims_page import page_name
from claims_rows import METHOD_ROWS, Row
from claims_store import ClaimsStore

from hapicl.common.atomic_files import atomic_write

LINE = re.compile(r'^  measured: ".*"$', re.MULTILINE)
# the scales that recipes quote; what was measured with the larger network goes first
WHAT = {
    "resnet18": "ResNet-18 at 64 px, 1,624 steps of 64",
    "cpu": "timm's test_resnet at 64 px, 1,624 steps of 64",
}


def sentence(store: ClaimsStore, row: Row) -> str | None:
    """The columns that a row and its random start both have; None where there is none."""
    values = store.values()
    parts, seeds = [], set()
    for _, title in sorted(key for key in values if key[0] == row.name):
        mine, start = values[row.name, title], values.get((row.start, title))
        if start:
            mean, random = (100 * statistics.fmean(each.values()) for each in (mine, start))
            parts.append(f"{title} {mean:.1f} ({random:.1f})")
            seeds.add(len(mine))
    if not parts:
        return None
    count = f"{min(seeds)} seed{'s' if min(seeds) > 1 else ''}"
    page = f"docs/{page_name(store.scale)}.md"
    return f"{WHAT[store.scale]}, {count} (random weights in brackets; {page}): {', '.join(parts)}"


def write_recipes(store: ClaimsStore, folder: Path) -> None:
    """Renew the line `measured` of every small recipe that has a row of numbers.

    A line from the larger network stays when the smaller one has been measured.
    """
    for row in METHOD_ROWS:
        text = sentence(store, row)
        file = folder / f"{row.name}_small.yaml"
        if text is None or row.changes or not file.exists():
            continue
        before = file.read_text()
        if store.scale == "cpu" and WHAT["resnet18"] in before:
            continue
        after = LINE.sub(f'  measured: "{text}"', before)
        if after != before:
            with atomic_write(file) as part:
                part.write_text(after)

"""What a small recipe says of itself under `about.measured`, made from the numbers of the claims table."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from claims_page import page_name
from claims_rows import METHOD_ROWS, Row
from claims_store import ClaimsStore

from hapicl.common.atomic_files import atomic_write
from hapicl.common.errors import UserError

LINE = re.compile(r'^  measured: ".*"$', re.MULTILINE)
QUOTED = "cpu"  # the scale that has three seeds of every method
CONTINUED = {"hapicl_s_continue": ("hapicl_s_continued_after_simclr@1/4", "hapicl_s@1/4")}  # row and rival


def sentence(store: ClaimsStore, row: Row) -> str | None:
    """What a method's row reached, beside its random start; None where nothing was measured."""
    backbone = "test_vit" if row.vit else "test_resnet"
    what = f"timm's {backbone} at 64 px, 1,624 steps of 64"
    return _quoted(store, row.name, row.start, what, "random weights")


def continued_sentence(store: ClaimsStore, row: str, rival: str) -> str | None:
    """What a row that goes on from weights reached, beside as many steps from nothing; None likewise."""
    what = (
        "as hapicl_s_small at a tenth of its rate, timm's test_resnet at 64 px, 203 steps after 203 of SimCLR"
    )
    return _quoted(store, row, rival, what, "406 steps of HAPiCL-S from random weights")


def _quoted(store: ClaimsStore, row: str, rival: str, what: str, rivals_name: str) -> str | None:
    """The columns that two rows both have."""
    values = store.values()
    parts, seeds = [], set()
    for _, title in sorted(key for key in values if key[0] == row):
        mine, other = values[row, title], values.get((rival, title))
        if other:
            means = (100 * statistics.fmean(each.values()) for each in (mine, other))
            parts.append("{} {:.1f} ({:.1f})".format(title, *means))
            seeds.add(len(mine))
    if not parts:
        return None
    count = f"{min(seeds)} seed{'s' if min(seeds) > 1 else ''}"
    page = f"docs/{page_name(store.scale)}.md"
    return f"{what}, {count} ({rivals_name} in brackets; {page}): {', '.join(parts)}"


def write_recipes(store: ClaimsStore, folder: Path) -> None:
    """Renew the line `measured` of every recipe that has a row of numbers.

    Raises:
        UserError: for numbers of another scale than recipes quote.
    """
    if store.scale != QUOTED:
        raise UserError(f"recipes quote the scale {QUOTED}, not {store.scale}; leave --recipes out")
    found = {f"{row.name}_small": sentence(store, row) for row in METHOD_ROWS if not row.changes}
    found |= {name: continued_sentence(store, *rows) for name, rows in CONTINUED.items()}
    for name, text in found.items():
        file = folder / f"{name}.yaml"
        if text is None or not file.exists():
            continue
        before = file.read_text()
        after = LINE.sub(f'  measured: "{text}"', before)
        if after != before:
            with atomic_write(file) as part:
                part.write_text(after)

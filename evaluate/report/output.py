"""What the commands leave: the result file, its report, and the lines the user sees."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.atomic_files import atomic_write, refuse_unwritable
from ...common.errors import UserError
from ...engine.checkpoint import LAST, PREVIOUS
from ..result import Run, read_result, write_result

RESULTS = Path("results")
COMMON_NAMES = frozenset({"last", "previous", "backbone"})  # of files in run folders


def default_out(task: str, protocol: str, weights: str, content: str) -> Path:
    """results/TASK-PROTOCOL-WEIGHTS-HASH.json, the hash of everything that changes the number."""
    return RESULTS / f"{task}-{protocol}-{readable_name(weights)}-{content[:8]}.json"


def readable_name(weights: str) -> str:
    """A name for weights: the file's, or the run folder's where the file is called as they all are."""
    path = Path(weights.removeprefix("supervised:"))
    name = path.parent.name if path.stem in COMMON_NAMES and path.parent.name else path.stem
    return re.sub(r"[^\w.-]", "_", name)[:80] or "weights"


def check_place(out: Path | None, *, report: bool) -> None:
    """Refuse a place that cannot be written, before the work.

    Args:
        out: the result file that was asked for; None: one in `results`.
        report: whether a page is written beside it.

    Raises:
        UserError: for a place that cannot be written, or a result that would be the page.
    """
    out = out or RESULTS / "result.json"
    page = out.with_suffix(".html")
    if page == out:
        raise UserError(f"--out {out} is the result's JSON; the report gets its name with .html")
    for place in (out, page) if report else (out,):
        refuse_unwritable(place)


def finished(out: Path, content: str, *, force: bool) -> list[str] | None:
    """Lines about a result of this content that is there; None where it has to be computed.

    Raises:
        UserError: if the file is of another content, which is never written over.
    """
    if not out.exists():
        return None
    result = read_result(out)
    if result.get("content") != content:
        raise UserError(
            f"{out} is a result of other weights, data, parameters or seeds; choose another --out, or leave "
            "--out away for a name of its own"
        )
    if force:
        return None
    return [*(_line(name, result) for name in result["mean"]), f"done before: {out} (--force computes again)"]


def finish(
    result: dict[str, Any], runs: list[Run], out: Path, *, report: bool, keep_checkpoints: bool
) -> list[str]:
    """Write the result and its report; drop the runs' checkpoints unless they are wanted.

    Returns:
        Lines for the user: every metric, and where the files are.
    """
    write_result(result, out)
    lines = [_line(name, result) for name in result["mean"]]
    lines.append(f"wrote {out}")
    if report:
        from .page import result_page

        page = out.with_suffix(".html")
        with atomic_write(page) as part:
            part.write_text(result_page(result, runs), encoding="utf-8")
        lines.append(f"wrote {page}")
    folder = out.with_suffix(".runs")
    if folder.is_dir() and not keep_checkpoints:
        for name in (LAST, PREVIOUS):
            for checkpoint in folder.rglob(name):
                checkpoint.unlink(missing_ok=True)
        for kept in list(folder.rglob("checkpoints")):
            shutil.rmtree(kept, ignore_errors=True)
    return lines


def _line(name: str, result: dict[str, Any]) -> str:
    """One metric, per cent."""
    mean, std = result["mean"][name], result["std"][name]
    spread = "" if std is None else f" ± {100 * std:.2f} over {len(result['runs'])} runs"
    mark = "  <- headline" if name == result["headline"] and len(result["mean"]) > 1 else ""
    return f"{name} {100 * mean:.2f} %{spread}{mark}"


def render_table(paths: Sequence[Path], kind: str) -> tuple[str, tuple[str, ...]]:
    """A table of result files as md, csv or html, and what should not be compared in it, in words."""
    from .table import comma_separated, gather, markdown

    found = gather(paths)
    if kind == "md":
        return markdown(found), found.warnings
    if kind == "csv":
        return comma_separated(found), found.warnings
    from .page import table_page

    return table_page(found), found.warnings

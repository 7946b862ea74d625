"""What the commands leave: the result file, its report, and the lines the user sees."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.atomic_files import atomic_write
from ...engine.checkpoint import LAST, PREVIOUS
from ..result import Run, write_result


def default_out(weights: str, protocol: str) -> Path:
    """results/<weights>-<protocol>.json, with a short hash of the weights' path, for many are `last.pt`."""
    name = Path(weights.removeprefix("supervised:")).stem
    mark = "" if weights == "random" else "-" + hashlib.sha256(weights.encode()).hexdigest()[:6]
    return Path("results") / f"{name}{mark}-{protocol}.json"


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
        for run in runs:
            for name in (LAST, PREVIOUS):
                (folder / f"seed{run.seed}" / name).unlink(missing_ok=True)
            shutil.rmtree(folder / f"seed{run.seed}" / "checkpoints", ignore_errors=True)
    return lines


def _line(name: str, result: dict[str, Any]) -> str:
    """One metric, per cent."""
    mean, std = result["mean"][name], result["std"][name]
    spread = "" if std is None else f" ± {100 * std:.2f} over {len(result['runs'])} runs"
    mark = "  <- headline" if name == result["headline"] and len(result["mean"]) > 1 else ""
    return f"{name} {100 * mean:.2f} %{spread}{mark}"


def render_table(paths: Sequence[Path], kind: str) -> str:
    """A table of result files as md, csv or html."""
    from .table import comma_separated, gather, markdown

    found = gather(paths)
    if kind == "md":
        return markdown(found)
    if kind == "csv":
        return comma_separated(found)
    from .page import table_page

    return table_page(found)

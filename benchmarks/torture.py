"""What hapicl survives: commands killed at random moments, workers killed, files and settings made wrong.

    make torture                                                     # some minutes; prints a table
    python benchmarks/torture.py --only pretrain --pretrain 100 --out FILE    # keeps FILE's other rows
    python benchmarks/torture.py --page benchmarks/results/torture.json       # the table of docs/survives.md

Every killed command is given again (every third is killed twice) and must end in the same bytes as one that
was left alone, without a traceback, with documented exit codes, and without files in the making or locks.
Moments are drawn by the seed, from 50 ms to the length of the undisturbed command; of the kills of training
every third is aimed at a checkpoint that is being written. A kill that came after the end does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# attack -> (how many by default, of what)
ATTACKS = {
    "pretrain": (12, "kills of pretrain"),
    "two": (2, "kills of pretrain in two processes"),
    "evaluate": (3, "kills of fine-tuning in evaluate semi"),
    "build": (4, "kills of masks build"),
    "pack": (4, "kills of data pack"),
    "pairs": (4, "commands given twice at the same moment: pretrain, evaluate, build and pack in turn"),
    "workers": (3, "workers killed: pretrain, masks build and data pack in turn"),
    "update": (2, "masks build --update while a reader holds the file"),
    "settings": (270, "values of --set and of recipes, in turn"),
    "masks": (20, "crafted mask files"),
    "checkpoints": (20, "crafted checkpoints"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (count, what) in ATTACKS.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"{what} [{count}]")
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), default=list(ATTACKS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON; rows of other attacks that it holds are kept")
    parser.add_argument("--page", type=Path, metavar="FILE", help="only print the rows of a file for a page")
    options = parser.parse_args()
    if options.page:
        print(page_table(json.loads(options.page.read_text(encoding="utf-8"))))
        return 0
    os.environ |= dict.fromkeys(THREADS, "1")  # before numpy and torch are imported
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
    from torture_attacks import Torture

    failed = 0
    print(f"{'attack':75} {'times':>6} {'failed':>6} {'seconds':>8}  outcomes")
    with tempfile.TemporaryDirectory() as scratch:
        torture = Torture(Path(scratch), options.seed)
        for name in options.only:
            start = time.perf_counter()
            tally = torture.attack(name, getattr(options, name))
            seconds = time.perf_counter() - start
            row = {"what": ATTACKS[name][1], **tally.as_json(), "seconds": round(seconds, 1)}
            outcomes = ", ".join(f"{times} {what}" for what, times in tally.outcomes.most_common())
            numbers = f"{tally.attacks:6} {len(tally.failures):6} {seconds:8.1f}"
            print(f"{row['what']:75} {numbers}  {outcomes}", flush=True)
            for failure in tally.failures:
                print(f"    {failure}", flush=True)
            failed += len(tally.failures)
            if options.out:
                _keep(options.out, name, row | machine(options.seed))
    print("all survived" if not failed else f"{failed} failed")
    return int(failed > 0)


def page_table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown: how often each attack was made, how often it failed, and how they ended."""
    lines = ["| attack | times | failed | how it ended |", "|---|---|---|---|"]
    for name in [name for name in ATTACKS if name in rows]:
        row = rows[name]
        outcomes = sorted(row["outcomes"].items(), key=lambda item: (-item[1], item[0]))
        ended = ", ".join(f"{what} ({times})" for what, times in outcomes)
        lines.append(f"| {row['what']} | {row['attacks']:,} | {len(row['failures'])} | {ended} |")
    return "\n".join(lines)


def machine(seed: int) -> dict[str, Any]:
    """Where and when."""
    import torch

    return {
        "date": date.today().isoformat(),
        "seed": seed,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _keep(out: Path, name: str, row: dict[str, Any]) -> None:
    """Write one row, beside those that the file holds."""
    from hapicl.common.atomic_files import atomic_write

    rows = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    with atomic_write(out) as part:
        part.write_text(json.dumps(rows | {name: row}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""The numbers of a comparison as rows: for the page, and as markdown and CSV files.

Numbers are per cent and points; CSV has shares in full precision.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Sequence

from ..outcome import Comparison
from ..run import Measured
from ..settings import per_cent
from ..verdict import Finding, interval_text, metric_name, points, verdict_word

CSV_COLUMNS = (
    "initialisation",
    "fraction",
    "labelled_images",
    "seeds",
    "mean",
    "std",
    "against",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "seeds_to_decide",
    "seconds_per_cell",
    "peak_memory_gib",
)


def number_header(comparison: Comparison) -> list[str]:
    """Names of the columns of `number_rows`."""
    return [
        "labels",
        "initialisation",
        f"{metric_name(comparison.headline)}, %",
        f"against {comparison.settings.reference}, points",
        "95 % interval",
        "p (Holm)",
        "verdict",
        "seeds to decide",
    ]


def number_rows(comparison: Comparison) -> list[list[str]]:
    """A row for each fraction and initialisation that has a number."""
    found = {(each.initialisation, each.fraction): each for each in comparison.findings}
    rows = []
    for fraction in comparison.settings.fractions:
        for name in comparison.settings.initialisations:
            cells = comparison.of(name, fraction)
            if cells:
                labels = f"{per_cent(fraction)} ({comparison.images[fraction]})"
                rows.append([labels, name, mean_text(cells), *_compared(found.get((name, fraction)))])
    return rows


def mean_text(cells: Sequence[Measured]) -> str:
    """Per cent, such as `41.2 ± 0.6 (3)`: mean, sample deviation, number of seeds."""
    values = [100 * found.value for found in cells]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread} ({len(values)})"


def _compared(finding: Finding | None) -> list[str]:
    """Difference, interval, p, verdict, seeds; dashes for the reference."""
    if finding is None or finding.difference is None:
        return ["-"] * 5
    difference = finding.difference
    needed = None if finding.decided else difference.seeds_to_decide()
    return [
        points(difference),
        interval_text(difference),
        "-" if finding.adjusted is None else f"{finding.adjusted:.3f}",
        verdict_word(finding),
        "-" if needed is None else str(needed),
    ]


def verdict_rows(comparison: Comparison) -> list[list[str]]:
    """A row for each initialisation, a cell for each fraction, such as `helps: +3.1 (+1.2 to +5.0)`."""
    rows = []
    for name in comparison.settings.others:
        row = [name]
        for finding in comparison.findings:
            if finding.initialisation == name:
                difference = finding.difference
                shown = "" if difference is None else f": {points(difference)} ({interval_text(difference)})"
                row.append("not measured" if difference is None else verdict_word(finding) + shown)
        rows.append(row)
    return rows


def seed_rows(comparison: Comparison) -> list[list[str]]:
    """A row for each seed of each comparison: the difference, and its interval over the test images."""
    rows = []
    for finding in comparison.findings:
        for seed, value in finding.by_seed.items():
            pair = finding.test_images.get(seed)
            interval = "-" if pair is None else f"{100 * pair[0]:+.1f} to {100 * pair[1]:+.1f}"
            labels = per_cent(finding.fraction)
            rows.append([labels, finding.initialisation, str(seed), f"{100 * value:+.1f}", interval])
    return rows


def markdown(comparison: Comparison) -> str:
    """The verdicts, the table of numbers and the notes."""
    header, rows = number_header(comparison), number_rows(comparison)
    bars = ["---", "---", *("---:" for _ in header[2:])]
    lines = ["| " + " | ".join(line) + " |" for line in (header, bars, *rows)]
    verdicts = "\n".join(f"- {text}" for text in comparison.verdicts())
    warnings = [f"Warning: {text}." for text in comparison.warnings()]
    parts = [verdicts, "\n".join(lines), *comparison.remarks(), *warnings]
    return "\n\n".join(parts) + "\n"


def comma_separated(comparison: Comparison) -> str:
    """A line for each initialisation and fraction; shares in full precision, empty where there is none."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(_csv_rows(comparison))
    return stream.getvalue()


def _csv_rows(comparison: Comparison) -> Iterator[dict[str, object]]:
    """The lines of `comma_separated`."""
    found = {(each.initialisation, each.fraction): each for each in comparison.findings}
    for name in comparison.settings.initialisations:
        for fraction in comparison.settings.fractions:
            cells = comparison.of(name, fraction)
            if not cells:
                continue
            values = [each.value for each in cells]
            yield {
                "initialisation": name,
                "fraction": fraction,
                "labelled_images": comparison.images[fraction],
                "seeds": len(values),
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else "",
                "seconds_per_cell": statistics.fmean(each.seconds for each in cells),
                "peak_memory_gib": max(each.peak_gib for each in cells),
            } | _csv_compared(found.get((name, fraction)))


def _csv_compared(finding: Finding | None) -> dict[str, object]:
    """The comparison's part of a line."""
    if finding is None or finding.difference is None:
        return {}
    difference = finding.difference
    low, high = difference.interval or ("", "")
    values = {
        "p": difference.p_value,
        "p_holm": finding.adjusted,
        "seeds_to_decide": difference.seeds_to_decide(),
    }
    return {
        "against": finding.against,
        "difference": difference.mean,
        "low": low,
        "high": high,
        "verdict": finding.verdict,
    } | {name: "" if value is None else value for name, value in values.items()}

"""Curves of runs: every logged number against the step, runs in one picture."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from ...common.page import Picture, figure_picture
from ...engine.run_logger import CHANCE, LOSS

HIDDEN = {"step", "epoch", "seconds"}
# names, or groups of them, in the order a reader wants; what is in neither list stands between the two
FIRST = ("loss", "knn/", LOSS, "similarity/", "embedding/")
LAST = ("schedule/", "gradient/", "speed/", "memory/")

Metrics = dict[str, list[dict[str, float]]]


def curve_pictures(metrics: Metrics) -> list[Picture]:
    """Draw one picture a number, the important ones first.

    Args:
        metrics: lines of metrics.jsonl by run name.

    Returns:
        Pictures; a dashed line is the value at chance level.
    """
    return [
        figure_picture(_draw(name, metrics), alt=f"{name} against the step") for name in _ordered(metrics)
    ]


def _ordered(metrics: Metrics) -> list[str]:
    """Names of what was logged, in the order a reader wants them."""
    names = {name for lines in metrics.values() for line in lines for name in line} - HIDDEN
    return sorted((name for name in names if not name.startswith(CHANCE)), key=_place)


def _place(name: str) -> tuple[int, str]:
    """Sort key: the place of a name's group, then the name."""
    for place, group in enumerate((*FIRST, *LAST)):
        if name == group or (group.endswith("/") and name.startswith(group)):
            return (place if place < len(FIRST) else place + 1), name
    return len(FIRST), name


def _draw(name: str, metrics: Metrics) -> Figure:
    """One number over all runs that have it."""
    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    axes: Any = figure.add_subplot()
    for number, (run, lines) in enumerate(metrics.items()):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 20 else None
        axes.plot(steps, values, color=f"C{number}", label=run, linewidth=1.2, marker=marker, markersize=3)
        level = CHANCE + name.removeprefix(LOSS)
        chance = [(line["step"], line[level]) for line in lines if level in line]
        if chance:
            axes.plot(
                *zip(*chance, strict=True), color=f"C{number}", linestyle="--", linewidth=0.8, alpha=0.7
            )
    axes.set_title(name.replace("_", " ").replace("/", ": "), fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, alpha=0.25)
    if len(metrics) > 1:
        axes.legend(fontsize=7, frameon=False)
    return figure

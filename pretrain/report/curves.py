"""Curves of runs: every logged number against the step, runs in one picture."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from ...common.page import Picture, figure_picture
from ...engine.run_logger import CHANCE

HIDDEN = {"step", "epoch", "seconds"}
FIRST = ("loss", "knn_accuracy", "instance", "pixel", "feature_std", "effective_rank")
LAST = ("lr", "samples_per_second", "data_wait_fraction", "peak_memory_gib")

Metrics = dict[str, list[dict[str, float]]]


def curve_pictures(metrics: Metrics) -> list[Picture]:
    """Draw one picture a number, the important ones first.

    Args:
        metrics: lines of metrics.jsonl by run name.

    Returns:
        Pictures; a dashed line is the part's value at chance level.
    """
    return [
        figure_picture(_draw(name, metrics), alt=f"{name} against the step") for name in _ordered(metrics)
    ]


def _ordered(metrics: Metrics) -> list[str]:
    """Names of what was logged, in the order a reader wants them."""
    names = {name for lines in metrics.values() for line in lines for name in line} - HIDDEN
    names = {name for name in names if not name.endswith(CHANCE)}
    middle = sorted(names - {*FIRST, *LAST})
    return [name for name in (*FIRST, *middle, *LAST) if name in names]


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
        chance = [line[name + CHANCE] for line in lines if name + CHANCE in line]
        if chance:
            axes.axhline(chance[-1], color=f"C{number}", linestyle="--", linewidth=0.8, alpha=0.7)
    axes.set_title(name.replace("_", " "), fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, alpha=0.25)
    if len(metrics) > 1:
        axes.legend(fontsize=7, frameon=False)
    return figure

"""Charts of a comparison: the metric against the number of labelled images, and the differences."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ....common.chart import Chart, Value, figure_chart
from ..outcome import Comparison
from ..settings import per_cent
from ..verdict import interval_text, metric_name, points, verdict_word

SIZE = (5.4, 3.7)  # inches; text stays readable on a phone


def learning_curves(comparison: Comparison) -> Chart:
    """Mean and deviation over seeds against the labelled images, a line for each initialisation."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    values = []
    for name in _names(comparison):
        points_of: list[tuple[int, float, float]] = []
        for fraction in comparison.settings.fractions:
            found = [100 * each.value for each in comparison.of(name, fraction)]
            if found:
                mean, images = statistics.fmean(found), comparison.images[fraction]
                points_of.append((images, mean, statistics.stdev(found) if len(found) > 1 else 0.0))
                each = ", ".join(f"{value:.1f}" for value in found)
                values.append(Value(axes, images, mean, f"{name}, {per_cent(fraction)}: {mean:.1f} ({each})"))
        if points_of:
            x, means, spreads = zip(*points_of, strict=True)
            (line,) = axes.plot(x, means, marker="o", label=name)
            lower = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
            upper = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
            axes.fill_between(x, lower, upper, alpha=0.18, color=line.get_color(), linewidth=0)
    _label_images(axes, comparison)
    axes.set_ylabel(f"{metric_name(comparison.headline)}, %")
    figure.legend(loc="outside upper left", frameon=False, fontsize=9)
    caption = (
        "Against the labels: the mean over seeds; the band is one standard deviation to each side. Two bands "
        "that overlap decide nothing, for seeds are compared pair by pair."
    )
    return figure_chart(figure, caption, values=values)


def differences(comparison: Comparison) -> Chart:
    """The mean difference from the reference with its interval, by labelled images."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    others = comparison.settings.others
    values = []
    for place, name in enumerate(others):
        # so that bars of one fraction stand side by side
        shift = 1.0 + 0.05 * (place - (len(others) - 1) / 2)
        colour = f"C{_names(comparison).index(name)}"
        for finding in comparison.findings:
            if finding.initialisation != name or finding.difference is None:
                continue
            difference, x = finding.difference, comparison.images[finding.fraction] * shift
            mean = 100 * difference.mean
            sides = difference.interval or (difference.mean, difference.mean)
            error = [[mean - 100 * sides[0]], [100 * sides[1] - mean]]
            filled = colour if finding.decided else "none"
            axes.errorbar(x, mean, error, color=colour, marker="o", markerfacecolor=filled, capsize=3)
            text = f"{name}, {per_cent(finding.fraction)}: {points(difference)} ({interval_text(difference)})"
            values.append(Value(axes, x, mean, f"{text}, {verdict_word(finding)}"))
        axes.plot([], [], color=colour, marker="o", label=name)
    axes.axhline(0, color="0.2", linewidth=1)
    _label_images(axes, comparison)
    axes.set_ylabel(f"{metric_name(comparison.headline)}, points above {comparison.settings.reference}")
    figure.legend(loc="outside upper left", frameon=False, fontsize=9)
    caption = (
        f"Differences from {comparison.settings.reference}, seed by seed: mean and 95 % interval. A filled "
        "point is decided, an open one is not."
    )
    return figure_chart(figure, caption, values=values)


def _names(comparison: Comparison) -> list[str]:
    """The reference first, so that it has the same colour on every page."""
    return [comparison.settings.reference, *comparison.settings.others]


def _label_images(axes: Axes, comparison: Comparison) -> None:
    """A logarithmic axis of labelled images, marked at the fractions alone."""
    fractions = comparison.settings.fractions
    axes.set_xscale("log")
    axes.set_xticks(
        [comparison.images[fraction] for fraction in fractions],
        [f"{per_cent(fraction)}\n{comparison.images[fraction]}" for fraction in fractions],
    )
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.set_xlabel("labelled training images")
    axes.grid(alpha=0.3)

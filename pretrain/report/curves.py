"""Charts of runs: four to six that a reader looks at first, and every other number that moves.

Losses of different methods are different quantities, and kNN accuracies on different images too, so they
never share a chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...common.chart import Chart, Value, figure_chart, spread
from ...engine.loggers.run_files import CHANCE, LOSS

HIDDEN = {"step", "epoch", "seconds"}
# names, or groups of them, in the order a reader wants; what is in neither list stands between the two
FIRST = ("loss", "knn/", LOSS, "similarity/", "embedding/")
LAST = ("schedule/", "gradient/", "speed/", "memory/")
POSITIVE, NEGATIVE, KNN = "similarity/positive", "similarity/negative", "knn/accuracy"
RATE, THROUGHPUT = "schedule/lr", "speed/samples_per_second"
SMOOTHING = 0.9  # of an exponential moving average over the points of a line that has many
MANY = 40  # points of a line from which on it is smoothed

_LOSSES = (
    "Terms of the loss without their weights; dashed in the same colour, what a model that knows nothing "
    "gets. A term should fall below its dashed line. With a queue it climbs first, while the queue fills "
    "with embeddings that are not yet spread, and falls after that."
)
_SIMILARITY = (
    "Cosine of pairs that should agree (solid) and of others (dashed). The gap between them is what is "
    "learned; both near 1 is a collapse."
)
_KNN = (
    "Accuracy of nearest neighbours on labelled images during training. The dotted line is the network "
    "before its first step, with random weights."
)
_RATE = "Learning rate of the optimiser."
_THROUGHPUT = "Samples per second of all processes; dips are pauses for checkpoints and the kNN."

Lines = list[dict[str, float]]
Metrics = dict[str, Lines]


@dataclass(frozen=True)
class Line:
    """One line of a chart: what it is called, its points, its look."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0  # place in matplotlib's cycle
    style: str = "-"
    noisy: bool = True  # drawn with a moving average, where there are many points


def headline_charts(metrics: Metrics, configs: dict[str, dict[str, Any]]) -> list[Chart]:
    """Loss terms by method, similarity, kNN by its images, learning rate and throughput.

    Args:
        metrics: lines of metrics.jsonl by run name.
        configs: config.json by run name.
    """
    colour = {run: number for number, run in enumerate(metrics)}
    charts = []
    for method, runs in _grouped(metrics, lambda run: configs[run]["settings"]["method"]).items():
        charts += _loss_charts(method, runs, colour)
    charts += _chart("Similarity of pairs", _similarities(metrics, colour), _SIMILARITY)
    for sets, runs in _grouped(metrics, lambda run: _knn_sets(configs[run]["settings"])).items():
        charts += _chart("Online kNN accuracy", _knn_lines(runs, colour), f"{_KNN} {sets}".strip())
    charts += _chart("Learning rate", _of(RATE, metrics, colour), _RATE)
    return charts + _chart("Samples per second", _of(THROUGHPUT, metrics, colour), _THROUGHPUT)


def other_charts(metrics: Metrics) -> list[Chart]:
    """A chart for every number that moves and is in no headline chart."""
    colour = {run: number for number, run in enumerate(metrics)}
    shown = {POSITIVE, NEGATIVE, KNN, RATE, THROUGHPUT}
    charts = []
    for name in _ordered(metrics):
        if name not in shown and not name.startswith(LOSS) and name not in constants(metrics):
            charts += _chart(_title(name), _of(name, metrics, colour), "")
    return charts


def constants(metrics: Metrics) -> dict[str, str]:
    """Numbers that never move, as text: by name, the value of each run that has it."""
    found = {}
    for name in _ordered(metrics):
        values = {run: {line[name] for line in lines if name in line} for run, lines in metrics.items()}
        values = {run: seen for run, seen in values.items() if seen}
        several = max(sum(name in line for line in lines) for lines in metrics.values()) > 1
        if several and all(len(seen) == 1 for seen in values.values()):
            each = {run: f"{next(iter(seen)):.4g}" for run, seen in values.items()}
            texts = set(each.values())
            told = ", ".join(f"{run} {text}" for run, text in each.items())
            found[name] = texts.pop() if len(texts) == 1 else told
    return found


def _grouped(metrics: Metrics, key: Any) -> dict[str, Metrics]:
    """Runs by what they share."""
    groups: dict[str, Metrics] = {}
    for run, lines in metrics.items():
        groups.setdefault(key(run), {})[run] = lines
    return groups


def _loss_charts(method: str, runs: Metrics, colour: dict[str, int]) -> list[Chart]:
    """All terms of one run in a chart; of several runs of one method, a chart for each term."""
    names = [name for name in _ordered(runs) if name.startswith(LOSS)] or ["loss"]
    if len(runs) > 1:
        charts = []
        for name in names:
            lines = [line for run in runs for line in _term(name, run, runs[run], colour[run], label=run)]
            charts += _chart(f"{method}: {_title(name)}", lines, _LOSSES)
        return charts
    ((run, logged),) = runs.items()
    lines = [
        line
        for number, name in enumerate(names)
        for line in _term(name, run, logged, number, label=name.removeprefix(LOSS))
    ]
    return _chart(f"{method}: terms of the loss", lines, _LOSSES)


def _term(name: str, run: str, logged: Lines, colour: int, *, label: str) -> list[Line]:
    """A term of the loss, and its chance level."""
    level = CHANCE + name.removeprefix(LOSS)
    found = [_line(name, logged, label, colour), _line(level, logged, f"{label}, chance", colour, "--")]
    return [line for line in found if line.steps]


def _similarities(metrics: Metrics, colour: dict[str, int]) -> list[Line]:
    """Positive pairs solid, negative ones dashed."""
    several = len(metrics) > 1
    found = []
    for run, logged in metrics.items():
        for name, style in ((POSITIVE, "-"), (NEGATIVE, "--")):
            word = name.rpartition("/")[2]
            number = colour[run] if several else int(name == NEGATIVE)
            found.append(_line(name, logged, f"{run}, {word}" if several else word, number, style))
    return [line for line in found if line.steps]


def _knn_lines(metrics: Metrics, colour: dict[str, int]) -> list[Line]:
    """Accuracy of each run, and that of its random weights as a level."""
    found = []
    for run, logged in metrics.items():
        line = _line(KNN, logged, run if len(metrics) > 1 else "this run", colour[run])
        if not line.steps:
            continue
        found.append(line)
        if 0 in line.steps:  # measured before the first step
            ends, level = (0.0, max(line.steps)), line.values[line.steps.index(0)]
            found.append(Line(f"{line.label}, random weights", ends, (level, level), colour[run], ":"))
    return found


def _knn_sets(settings: dict[str, Any]) -> str:
    """Which images the kNN of a run is measured on, in words; the same words, the same images."""
    if not settings.get("knn_train"):
        return ""
    most = settings.get("knn_images")
    count = f"at most {most}" if most else "all"
    return f"From {settings['knn_train']} to {settings['knn_val']}, {count} images of each."


def _of(name: str, metrics: Metrics, colour: dict[str, int]) -> list[Line]:
    """One number of every run that has it."""
    found = [_line(name, logged, run, colour[run]) for run, logged in metrics.items()]
    return [line for line in found if line.steps]


def _line(name: str, logged: Lines, label: str, colour: int, style: str = "-") -> Line:
    """The points of a number."""
    points = [(line["step"], line[name]) for line in logged if name in line]
    steps, values = [step for step, _ in points], [value for _, value in points]
    return Line(label, steps, values, colour, style, noisy=not name.startswith("schedule/"))


def _chart(title: str, lines: Sequence[Line], caption: str) -> list[Chart]:
    """A chart of lines; none where there is nothing to draw."""
    if not lines:
        return []
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes: Any = figure.add_subplot()
    values = []
    for line in lines:
        _draw(axes, line)
        if line.style != ":":
            for place in spread(len(line.steps)):
                step, value = line.steps[place], line.values[place]
                values.append(Value(axes, step, value, f"{line.label}: {value:.5g} at step {step:g}"))
    axes.set_xlabel("step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, alpha=0.6, linewidth=0.6)
    if len(lines) > 1:
        axes.legend(fontsize=7, frameon=False)
    axes.set_title(title if len(title) < 60 else f"{title[:57]}...", fontsize=9)
    return [figure_chart(figure, caption, f"{title} against the step", values=values)]


def _draw(axes: Any, line: Line) -> None:
    """A line; one of many points faint, under its moving average."""
    colour = f"C{line.colour % 6}"
    many = line.noisy and line.style == "-" and len(line.steps) >= MANY
    marker = "o" if len(line.steps) < 20 and line.style == "-" else None
    axes.plot(
        line.steps,
        line.values,
        color=colour,
        linestyle=line.style,
        label=None if many else line.label,
        linewidth=0.8 if many or line.style != "-" else 1.3,
        alpha=0.3 if many else 1.0,
        marker=marker,
        markersize=3,
    )
    if many:
        axes.plot(line.steps, _smoothed(line.values), color=colour, label=line.label, linewidth=1.5)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average that starts unbiased."""
    found, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + (1 - SMOOTHING)
        found.append(mean / weight)
    return found


def _title(name: str) -> str:
    """A number's name for people."""
    return name.replace("_", " ").replace("/", ": ")


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

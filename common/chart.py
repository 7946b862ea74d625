"""Charts for the pages: matplotlib's figures as SVG inside the page, in the page's own colours.

No JavaScript: a chart library that can be embedded adds 1.3 MB (Bokeh 3.9) to 4.8 MB (Plotly 7.1) to every
page, and the pages forbid scripts, so that they can be mailed and opened anywhere. An SVG stays sharp at the
browser's zoom, follows dark mode by style sheet, and shows values under the pointer by `<title>` elements.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from .terminal.printable import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib's colours -> the page's, which depend on dark mode; the page's style sheet holds the numbers
_COLOURS = {
    "#000000": "currentColor",
    "#333333": "currentColor",
    "#b0b0b0": "var(--line)",
    "#1f77b4": "var(--chart-1)",
    "#ff7f0e": "var(--chart-2)",
    "#2ca02c": "var(--chart-3)",
    "#d62728": "var(--chart-4)",
    "#9467bd": "var(--chart-5)",
    "#8c564b": "var(--chart-6)",
}
_POINTS_PER_INCH = 72  # of an SVG by matplotlib
MOST_VALUES = 150  # points of a line that show their value; more would make the page large


@dataclass(frozen=True)
class Chart:
    """A chart with its caption; `svg` is put into the page as it is.

    `alt` is read aloud in place of the chart; `width` limits the shown width, CSS pixels.
    """

    svg: str
    caption: str = ""
    alt: str = ""
    width: int | None = None


@dataclass(frozen=True)
class Value:
    """A point of a chart that shows a text under the pointer: place in data units of `axes`, and the text."""

    axes: Any
    x: float
    y: float
    text: str


def figure_chart(figure: Figure, caption: str = "", alt: str = "", *, values: Sequence[Value] = ()) -> Chart:
    """Make a chart of a matplotlib figure.

    Build the figure as `matplotlib.figure.Figure(figsize=..., layout="constrained")`, not through pyplot: it
    needs no display and no closing. Black, matplotlib's grey of grids and its first six colours become the
    page's; other colours stay as they are in the dark too.

    Args:
        figure: it is given a transparent background.
        caption: below the chart.
        alt: for readers who cannot see it.
        values: that show under the pointer.
    """
    from matplotlib import rc_context

    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hapicl"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = _cleaned(stream.getvalue(), printable(alt or caption))
    svg = svg.replace("</svg>", f"{_values(figure, values)}</svg>")
    return Chart(svg, caption, alt, width=round(figure.get_figwidth() * 96))


def _cleaned(svg: str, label: str) -> str:
    """An SVG that can stand in a page: names of its own, the page's colours, no header and no style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'^<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label, {chr(34): "&quot;"})}" ', 1)
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    for before, after in (('id="', 'id="{}-'), ("url(#", "url(#{}-"), ('href="#', 'href="#{}-')):
        svg = svg.replace(before, after.format(own))
    for theirs, ours in _COLOURS.items():
        svg = svg.replace(f": {theirs}", f": {ours}")
    return svg


def _values(figure: Figure, values: Sequence[Value]) -> str:
    """Circles without colour whose titles a browser shows under the pointer."""
    if not values:
        return ""
    scale, height = _POINTS_PER_INCH / figure.dpi, figure.get_figheight() * _POINTS_PER_INCH
    circles = []
    for value in values:
        x, y = value.axes.transData.transform((value.x, value.y)) * scale
        title = escape(printable(value.text))
        circles.append(f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="5"><title>{title}</title></circle>')
    return f'<g class="values">{"".join(circles)}</g>'


def spread(count: int) -> list[int]:
    """Positions of at most `MOST_VALUES` of so many points, evenly spread, the last one among them."""
    step = -(-count // MOST_VALUES)
    return sorted({*range(0, count, step), count - 1}) if count else []

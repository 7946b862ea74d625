"""Pages: self-contained, escaped, well formed, in order."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hapicl.common.chart import Chart, Value, figure_chart, spread
from hapicl.common.page import (
    Code,
    Folded,
    Note,
    Picture,
    Pictures,
    Section,
    Table,
    encode_image,
    page,
)

VOID = {"meta", "img", "input"}


class Outline(HTMLParser):
    """Collects tags, attributes and text; complains of tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.text.append(data.strip())


def outline(html):
    parsed = Outline()
    parsed.feed(html)
    parsed.close()
    assert parsed.open == []
    return parsed


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def test_everything_given_is_on_the_page_in_order(pixels):
    blocks = [
        "first words",
        Note("beware"),
        Code("hapicl demo"),
        Table(["name", "value"], [["loss", "1.5"]], "settings", numeric=[1]),
        Picture(pixels, "a picture"),
        Pictures([Picture(pixels, "left"), Picture(pixels, "right")]),
        "last words",
    ]
    parsed = outline(page("Title", [Section("Heading", blocks)], lead="the lead", footer="the end"))
    assert parsed.text == [
        *("Title", "Title", "the lead", "Heading", "first words", "beware", "hapicl demo", "settings"),
        *("name", "value", "loss", "1.5", "a picture", "left", "right", "last words", "the end"),
    ]
    assert parsed.tags.count("img") == 3


def test_text_is_escaped_everywhere():
    evil = "<script>alert('x')</script>&\"'"
    blocks = [
        evil,
        Note(evil),
        Code(evil),
        Table([evil], [[evil]], evil),
        Picture(np.zeros((2, 2), np.uint8), evil, evil),
    ]
    parsed = outline(page(evil, [Section(evil, blocks)], lead=evil, footer=evil))
    assert "script" not in parsed.tags
    assert parsed.text.count(evil) == 12  # title twice, and each place once
    assert ("img", "alt", evil) in parsed.attributes


def test_nothing_is_loaded_from_elsewhere(pixels):
    html = page("t", [Section("h", [Picture(pixels, "p")])])
    assert not re.search(r"https?:|url\(|@import|<link|<script", html)
    sources = [value for _, name, value in outline(html).attributes if name in {"src", "href"}]
    assert sources
    assert all(value.startswith(("data:image/", "#")) for value in sources)


def test_a_png_picture_holds_exactly_the_pixels(pixels):
    content = base64.b64decode(Picture(pixels).uri.removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)


def test_a_mask_becomes_black_and_white():
    mask = np.array([[True, False]])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_image(mask)))), [[255, 0]])


def test_a_lossy_picture_is_a_jpeg(pixels):
    assert Picture(pixels, lossy=True).uri.startswith("data:image/jpeg;base64,")


def test_encoded_bytes_are_kept_as_they_are(pixels):
    content = encode_image(pixels)
    assert Picture(content).uri.endswith(base64.b64encode(content).decode())


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2)), np.zeros((2,), np.uint8), np.zeros((2, 2, 3), bool)],
)
def test_pixels_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match="uint8"):
        encode_image(wrong)


def test_bytes_that_are_no_picture_are_refused():
    with pytest.raises(ValueError, match="PNG or JPEG"):
        page("t", [Section("h", [Picture(b"%PDF-1.7")])])


def test_uneven_rows_are_refused():
    with pytest.raises(ValueError, match="'scores'"):
        page("t", [Section("scores", [Table(["a", "b"], [["only one"]])])])


def test_contents_appear_with_four_sections_and_lead_to_them():
    few, many = (page("t", [Section(f"part {n}") for n in range(count)]) for count in (3, 4))
    assert "nav" not in outline(few).tags
    attributes = outline(many).attributes
    targets = {value for tag, name, value in attributes if tag == "section" and name == "id"}
    links = {value.removeprefix("#") for _, name, value in attributes if name == "href"}
    assert links == targets
    assert len(links) == 4


def chart(label="<curve>") -> Chart:
    """A line of three points with their values."""
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2, 3], [3, 1, 2])
    axes.set_title(label)
    values = [Value(axes, x, y, f"{label}: {y} at {x}") for x, y in ((1, 3), (2, 1), (3, 2))]
    return figure_chart(figure, "how to read it", values=values)


def test_a_chart_has_the_pages_colours_and_shows_its_values():
    """A chart was a white picture in the dark, and its numbers were guesses by eye."""
    html = page("t", [Section("h", [chart(), Pictures([chart("other")])])])
    parsed = outline(html)
    assert parsed.tags.count("svg") == 2
    assert parsed.text.count("<curve>: 1 at 2") == 1
    svg = html[html.index("<svg") :]
    assert "var(--chart-1)" in svg
    assert "#1f77b4" not in svg
    assert "#ffffff" not in svg  # no white ground
    for name in re.findall(r"var\((--[\w-]+)\)", svg):
        assert html.count(f"{name}:") == 2, name  # by day and by night
    assert not re.search(r"https?:(?!//www\.w3\.org/)|url\((?!#)|<script|<style|<metadata", svg)
    names = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(names) == len(set(names))
    used = {value for _, name, value in parsed.attributes if name == "xlink:href"}
    assert {value.removeprefix("#") for value in used} <= set(names)


def test_values_stand_on_their_points():
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], marker="o")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    corners = [Value(axes, 0, 0, "low"), Value(axes, 1, 1, "high")]
    found = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', figure_chart(figure, values=corners).svg)
    left, bottom, width, height = axes.get_position().bounds
    expected = [(left, bottom), (left + width, bottom + height)]
    for (x, y), (across, up) in zip(found, expected, strict=True):
        assert float(x) == pytest.approx(across * 3 * 72, abs=0.1)
        assert float(y) == pytest.approx((1 - up) * 2 * 72, abs=0.1)


def test_a_long_line_shows_some_of_its_values_and_the_last():
    assert spread(0) == []
    assert spread(3) == [0, 1, 2]
    assert len(spread(10_000)) <= 151
    assert spread(10_000)[-1] == 9_999


def test_what_is_folded_is_on_the_page(pixels):
    inner = [Table(["a"], [["b"]]), Pictures([Picture(pixels, "deep")])]
    parsed = outline(page("t", [Section("h", [Folded("more", inner)])]))
    assert {"details", "summary"} <= set(parsed.tags)
    assert parsed.text[-4:] == ["more", "a", "b", "deep"]
    with pytest.raises(ValueError, match="'scores'"):
        page("t", [Section("scores", [Folded("more", [Table(["a", "b"], [["only one"]])])])])

"""Pages: self-contained, escaped, well formed, in order."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hapicl.common.page import (
    Code,
    Note,
    Picture,
    Pictures,
    Section,
    Table,
    encode_image,
    figure_picture,
    page,
)

VOID = {"meta", "img"}


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


def test_a_figure_is_shown_at_half_its_pixels():
    picture = figure_picture(Figure(figsize=(3, 2)), "curve")
    assert picture.width == 240
    assert Image.open(io.BytesIO(picture.image)).size == (480, 320)

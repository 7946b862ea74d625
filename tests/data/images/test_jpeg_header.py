"""The short look at a JPEG's header: what Pillow reads, or nothing."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from hapicl.data.images.jpeg_header import plain_frame


def _encode(mode="RGB", size=(40, 24), **options):
    colours = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours[:, :, :3]).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_size_and_kind_are_pillow_s(mode, progressive):
    data = _encode(mode, size=(301, 77), progressive=progressive, comment=b"a comment", dpi=(72, 72))
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    frame = plain_frame(data)
    assert (frame.width, frame.height) == image.size == (301, 77)
    assert frame.progressive == bool(image.info.get("progressive")) == progressive


def test_what_may_be_turned_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert plain_frame(_encode(exif=exif)) is None


def test_no_height_twelve_bits_and_two_components_are_left_to_pillow():
    data = _encode("L")
    frame = data.index(b"\xff\xc0")
    for place, value in ((frame + 4, 12), (frame + 6, 0), (frame + 9, 2)):
        changed = bytearray(data)
        changed[place] = value
        assert plain_frame(bytes(data)) is not None
        assert plain_frame(bytes(changed)) is None


@given(st.integers(0, 700), st.binary(max_size=40))
def test_a_cut_or_overwritten_header_never_gives_another_size(place, noise):
    """Unless the noise hits the two sides themselves."""
    data = _encode()
    sides = data.index(b"\xff\xc0") + 5
    assert plain_frame(data[:place]) in (None, plain_frame(data))
    if place > sides + 4:
        damaged = data[:place] + noise + data[place + len(noise) :]
        assert plain_frame(damaged) == plain_frame(data)

"""TIFF files of any number of bands: read whole, chosen, scaled honestly, refused with the way on."""

import contextlib
import io
import pickle

import numpy as np
import pytest
import tifffile

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.data.images.decode import ImageError, decode_image, image_size, read_header
from hapicl.data.images.inputs import RGB, Inputs, inputs_of
from hapicl.data.images.pack import ImagePack
from hapicl.data.images.pack_build import PackSettings, pack_images
from hapicl.data.images.tiff import TiffError, read_bands

LIMIT = 10**6  # bytes


def values(bands=6, dtype=np.uint16, height=10, width=14):
    generator = np.random.default_rng(0)
    return generator.integers(0, 200 if dtype == np.uint8 else 20_000, (height, width, bands)).astype(dtype)


def tiff(pixels, **options):
    stream = io.BytesIO()
    options = {"photometric": "minisblack", "planarconfig": "contig"} | options
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def pages(pixels):
    """A band a page, with an overview of each behind, as some programs write them."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for band in range(pixels.shape[2]):
            writer.write(pixels[:, :, band], photometric="minisblack", metadata=None)
        writer.write(pixels[::2, ::2, 0], photometric="minisblack", subfiletype=1, metadata=None)
    return stream.getvalue()


FORMS = {
    "plain": tiff,
    "deflate": lambda pixels: tiff(pixels, compression="zlib"),
    "tiles": lambda pixels: tiff(pixels, tile=(16, 16)),
    "planes": lambda pixels: tiff(pixels.transpose(2, 0, 1), planarconfig="separate"),
    "pages": pages,
    "big": lambda pixels: tiff(pixels, bigtiff=True, byteorder=">"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_form_of_file_gives_its_bands(form, dtype):
    pixels = values(dtype=dtype)
    data = FORMS[form](pixels)
    if form != "big":  # Pillow reads no BigTIFF of this kind, and the first bytes are others
        assert read_header(data, "x").size == (10, 14)
    found = read_bands(data, LIMIT)
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == dtype


def test_sixteen_bits_are_scaled_by_their_type_or_by_the_stated_range():
    data = tiff(np.array([[[0, 100], [65535, 1000]]], np.uint16))
    assert Inputs(in_channels=2).decode(data, "x").tolist() == [[[0, 0], [255, 4]]]
    stated = Inputs(in_channels=2, band_range=((0, 1000),))
    assert stated.decode(data, "x").tolist() == [[[0, 26], [255, 255]]]
    each = build(Inputs, {"in_channels": 2, "band_range": [[0, 65535], [100, 1000]]})
    assert each.decode(data, "x").tolist() == [[[0, 0], [255, 255]]]
    with pytest.raises(
        ImageError, match="float32 has no agreed range; give the values of black and white as b"
    ):
        Inputs(in_channels=2).decode(tiff(values(2, np.float32)), "x")
    holes = np.array([[[np.nan, 0.5], [-np.inf, np.inf]]], np.float32)
    found = Inputs(in_channels=2, band_range=((0, 1),)).decode(tiff(holes), "x")
    assert found.tolist() == [[[0, 128], [0, 255]]]


def test_eight_bits_stay_as_they_are_and_bands_are_chosen_in_order():
    pixels = values(5, np.uint8)
    data = tiff(pixels)
    np.testing.assert_array_equal(Inputs(in_channels=5).decode(data, "x"), pixels)
    chosen = build(Inputs, {"in_channels": 4, "bands": "4,1,1,5"})
    np.testing.assert_array_equal(chosen.decode(data, "x"), pixels[:, :, [3, 0, 0, 4]])
    with pytest.raises(ImageError, match="5 bands, and in_channels=4 wants as many; choose some by bands"):
        Inputs(in_channels=4).decode(data, "x")
    with pytest.raises(ImageError, match="5 bands, and bands asks for number 6"):
        Inputs(in_channels=1, bands=(6,)).decode(data, "x")
    grey = tiff(pixels[:, :, 0], planarconfig=None)
    np.testing.assert_array_equal(Inputs(in_channels=1).decode(grey, "x"), pixels[:, :, :1])


def test_pixels_are_turned_upright():
    pixels = values(4, np.uint8)
    data = tiff(pixels, extratags=[(274, "H", 1, 6, True)])
    found = Inputs(in_channels=4).decode(data, "x")
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))
    assert read_header(data, "x").size == found.shape[:2]


def test_a_file_of_many_bands_says_how_to_read_it(tmp_path):
    (tmp_path / "x.tif").write_bytes(tiff(values(6)))
    assert image_size(tmp_path / "x.tif") == (10, 14)
    with pytest.raises(ImageError, match=r"6 bands of uint16, no photograph; `pretrain --set in_channels=N`"):
        decode_image((tmp_path / "x.tif").read_bytes(), "x.tif")
    with pytest.raises(ImageError, match="JPEG; in_channels and bands are of TIFF files"):
        decode_image(b"\xff\xd8\xff", "x.jpg", reader=Inputs(in_channels=4).reader)
    assert RGB.reader is None


def test_damaged_and_truncated_files_are_refused_in_a_line():
    generator = np.random.default_rng(0)
    whole = {name: form(values()) for name, form in FORMS.items()}
    for data in whole.values():
        for cut in (9, len(data) // 3, len(data) - 400):
            with pytest.raises(TiffError):
                read_bands(data[:cut], LIMIT)
        for _ in range(40):
            broken = bytearray(data)
            for place in generator.integers(0, min(len(data), 600), 3):
                broken[place] = generator.integers(256)
            with contextlib.suppress(TiffError):  # any other error would end a worker
                read_bands(bytes(broken), LIMIT)


def test_a_file_whose_pixels_fill_the_memory_is_refused_unread():
    data = tiff(np.zeros((100, 100, 8), np.uint8), compression="zlib")
    with pytest.raises(ImageError, match="80000 bytes of pixels are more than the limit of 30000"):
        Inputs(in_channels=8).decode(data, "x", max_pixels=10_000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_channels": 4, "bands": [1, 2]}, "bands has 2 entries, and in_channels is 4"),
        ({"in_channels": 4, "mean": [0.5] * 3, "std": [1] * 3}, "mean has 3 entries, and in_channels is 4"),
        ({"in_channels": 1, "mean": [0.5]}, "give both mean and std, or neither"),
        ({"in_channels": 3, "band_range": [[0, 1]] * 2}, "band_range has 2 pairs, and in_channels is 3"),
        ({"band_range": [5, 5]}, "the first of a pair is what becomes black, below the second"),
        ({"bands": [0, 1, 2]}, "should be at least 1"),
        ({"in_channels": 0}, "in_channels: should be at least 1"),
        ({"in_channels": 1, "mean": [0], "std": [0]}, "should be above 0"),
    ],
)
def test_inputs_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        build(Inputs, wrong)


def test_inputs_travel_as_texts_and_in_pickles():
    inputs = build(
        Inputs,
        {"in_channels": 2, "bands": "2,1", "band_range": "0,1e4", "mean": [0.1, 0.2]} | {"std": [1, 2]},
    )
    assert inputs_of(inputs.as_texts()) == inputs == pickle.loads(pickle.dumps(inputs))
    assert inputs_of(inputs.model_dump(mode="json")) == inputs
    assert RGB.as_texts() == {}
    assert inputs_of({"arch": "resnet18"}) == RGB


def test_a_pack_keeps_files_of_bands_whole_and_makes_none_smaller(tmp_path):
    for name in ("a.tif", "b.tif"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(tiff(values(6, height=40, width=50)))
    (tmp_path / "images" / "c.tif").write_bytes(tiff(values(6))[:-500])
    summary = pack_images(tmp_path / "images", tmp_path / "images.h5", workers=1)
    assert summary.unreadable == {"c.tif": "damaged TIFF, or of a rare kind: truncated"}
    data, size, _ = ImagePack(tmp_path / "images.h5").read("b.tif")
    assert (size, data) == ((40, 50), (tmp_path / "images" / "b.tif").read_bytes())
    with pytest.raises(UserError, match=r"a\.tif: no photograph, .*leave --short-side out"):
        pack_images(tmp_path / "images", tmp_path / "s.h5", PackSettings(short_side=16), workers=1)

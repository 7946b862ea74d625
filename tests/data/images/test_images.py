"""Images from disk: every kind ends in upright RGB or in a clear reason."""

import io
import os
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from hapicl.common.errors import UserError
from hapicl.data.images import decode as images
from hapicl.data.images.decode import ImageError, decode_image, image_size, read_header, read_image
from hapicl.data.images.folder import find_images


def blocks(height=24, width=40):
    """A picture of 8 x 8 blocks: lossy formats keep it nearly exactly."""
    colours = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(colours, np.ones((8, 8, 1), np.uint8)))


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_as_pillow_would(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(blocks(), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    decoded = decode_image(data, "x")
    assert read_header(data, "x").size == expected.shape[:2] == decoded.shape[:2]
    assert np.abs(decoded.astype(int) - expected).mean() < 3
    assert decoded.flags.c_contiguous


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "GIF", "TIFF"])
def test_lossless_kinds_come_back_exactly(kind):
    picture = blocks().convert("P", palette=Image.Palette.ADAPTIVE).convert("RGB")
    decoded = decode_image(encode(picture, kind), "x")
    np.testing.assert_array_equal(decoded, np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_other_modes_become_rgb(mode):
    picture = blocks().convert(mode)
    data = encode(picture, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(decode_image(data, "x"), np.asarray(picture.convert("RGB")))


def test_cmyk_jpeg_is_rgb_of_about_the_same_colours():
    picture = blocks()
    decoded = decode_image(encode(picture.convert("CMYK"), "JPEG", quality=95), "x")
    assert decoded.shape == (24, 40, 3)
    assert np.abs(decoded.astype(int) - np.asarray(picture)).mean() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(kind):
    values = np.random.default_rng(0).integers(0, 65535, (10, 12), dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), kind), "x")
    assert decoded.shape == (10, 12, 3)
    assert np.abs(decoded[:, :, 0].astype(int) - (values >> 8)).max() <= 1


def test_float_tiff_is_refused():
    with pytest.raises(ImageError, match="32 bits"):
        decode_image(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "x")


def test_one_pixel_and_one_row_are_images():
    for size in ((1, 1), (1, 300), (300, 1)):
        data = encode(Image.new("RGB", size, (9, 8, 7)), "PNG")
        assert decode_image(data, "x").shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_truncated_files_are_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(ImageError):
        decode_image(data[: len(data) * 2 // 3], "photo.x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is no image, whatever its name", "not an image of a known kind"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "damaged JPEG header"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "damaged PNG header"),
    ],
)
def test_what_is_no_image_says_why(tmp_path, data, reason):
    (tmp_path / "photo.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(tmp_path / "photo.jpg")
    assert str(tmp_path / "photo.jpg") in str(caught.value)
    with pytest.raises(ImageError):
        image_size(tmp_path / "photo.jpg")
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)
    with pytest.raises(UserError, match="cannot read the image folder"):
        find_images(tmp_path / "none")


def test_bombs_are_refused_by_their_header_alone():
    bomb = encode(Image.new("1", (20000, 20000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ImageError, match="more than the limit"):
        decode_image(bomb, "bomb.png")
    with pytest.raises(ImageError, match="more than the limit of 10"):
        decode_image(encode(blocks(), "PNG"), "x", max_pixels=10)


def test_a_huge_baseline_jpeg_is_decoded_reduced_and_a_progressive_one_refused():
    huge = Image.new("RGB", (9000, 8000), (200, 30, 60))
    data = encode(huge, "JPEG", quality=20)
    with pytest.raises(ImageError, match="more than the limit"):
        decode_image(data, "x")
    assert decode_image(data, "x", reduce_to=160).shape == (1000, 1125, 3)
    with pytest.raises(ImageError, match="more than the limit"):
        decode_image(encode(huge, "JPEG", quality=20, progressive=True), "x", reduce_to=160)


@pytest.mark.parametrize(("least", "factor"), [(200, 1), (100, 2), (61, 2), (50, 4), (25, 8), (1, 8)])
def test_reduced_decoding_keeps_the_short_side(photographs, least, factor):
    data = encode(Image.fromarray(photographs["chelsea"][:200, :296]), "JPEG", quality=95)
    decoded = decode_image(data, "x", reduce_to=least)
    assert decoded.shape == (200 // factor, 296 // factor, 3)
    full = cv2.resize(decode_image(data, "x"), decoded.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(decoded.astype(int) - full).mean() < 4


def test_a_file_above_the_size_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    (tmp_path / "x.png").write_bytes(encode(blocks(), "PNG"))
    with pytest.raises(ImageError, match="more than the limit of 10"):
        read_image(tmp_path / "x.png")


def test_folders_are_listed_at_any_depth_in_byte_order(tmp_path):
    names = ["b.JPG", "a/z.jpeg", "a/b/c/d.PNG", "é.webp", "a.tif", "Z.bmp"]
    for name in (*names, "notes.txt", ".hidden.jpg", ".cache/x.jpg", "a/readme"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_images(tmp_path) == sorted(names, key=str.encode)
    assert find_images(tmp_path / "a") == ["b/c/d.PNG", "z.jpeg"]


def test_links_are_followed_once(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "real" / "x.jpg", outside / "y.jpg", root / "z" / "w.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "real")
    (root / "z" / "far").symlink_to(outside)
    (root / "far2").symlink_to(outside)
    (root / "file.jpg").symlink_to(outside / "y.jpg")
    (root / "broken.jpg").symlink_to(root / "nowhere.jpg")
    assert find_images(root) == ["broken.jpg", "far2/y.jpg", "file.jpg", "real/x.jpg", "z/w.jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a thing of Unix")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"pipe.jpg: not a plain file"):
            read(pipe)

"""Things called .jpg that are no files, folders that may not be opened, and codecs that talk."""

import contextlib
import os
import socket
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from hapicl.common.errors import UserError
from hapicl.data.images import folder as folder_module
from hapicl.data.images.decode import ImageError, image_size, read_bytes, read_header, read_image
from hapicl.data.images.folder import Folder, find_images
from hapicl.data.images.kinds import how_to_read


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A good image, a socket, a named pipe, a link to itself and a broken link."""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "good.jpg")
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 letters only
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    return tmp_path


def test_a_socket_a_pipe_and_a_link_to_itself_are_listed_and_said_to_be_no_images(odd):
    paths = find_images(odd)
    assert paths == ["broken.jpg", "good.jpg", "pipe.jpg", "self.jpg", "socket.jpg"]
    for path in paths:
        if path != "good.jpg":
            with pytest.raises(ImageError, match=r"cannot be read|not a plain file"):
                Folder(odd).read(path)
            with pytest.raises(ImageError, match=r"cannot be read|not a plain file"):
                image_size(odd / path)
    for path in ("socket.jpg", "pipe.jpg"):
        with pytest.raises(ImageError, match="not a plain file"):
            read_bytes(odd / path)


def test_a_folder_that_may_not_be_opened_is_listed_and_the_rest_goes_on(tmp_path, monkeypatch):
    for name in ("a/one.jpg", "locked/two.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def scandir(path):  # who runs the tests may be allowed everything
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return os_scandir(path)

    os_scandir = os.scandir
    monkeypatch.setattr(folder_module.os, "scandir", scandir)
    assert find_images(tmp_path) == ["a/one.jpg", "locked"]
    with pytest.raises(UserError, match="Permission denied; give a readable folder"):
        find_images(tmp_path / "locked")


def noisy_files(folder):
    """Images whose codecs complain: bytes between JPEG markers, a cut PNG and TIFF, damaged EXIF data."""
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8), (0, 0), 3)
    jpeg, png, tiff = (cv2.imencode(suffix, picture)[1].tobytes() for suffix in (".jpg", ".png", ".tif"))
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(picture).save(folder / "exif.jpg", exif=exif)
    data = bytearray((folder / "exif.jpg").read_bytes())
    at = data.index(b"Exif\0\0")
    data[at + 10 : at + 30] = b"\xff" * 20
    files = {
        "extra.jpg": jpeg[:-2] + b"\0\1\2" * 5 + jpeg[-2:],
        "cut.png": png[: len(png) // 2],
        "cut.tif": tiff[: len(tiff) // 2],
        "exif.jpg": bytes(data),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def test_codecs_write_nothing_on_the_screen(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for file in noisy_files(tmp_path):
            for read in (read_image, image_size, lambda file: read_header(file.read_bytes(), file.name)):
                with contextlib.suppress(ImageError):  # which says what is wrong, where it matters
                    read(file)
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_images_of_kinds_nobody_reads_were_left_out_without_a_word(tmp_path, caplog, monkeypatch):
    for name in ("a.jpg", "b.HEIC", "c.heif", "d.cr2", "e.CR2", "notes.txt"):
        (tmp_path / name).touch()
    how_to_read.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        assert find_images(tmp_path) == ["a.jpg"]
        find_images(tmp_path)  # says it once
        with pytest.raises(ImageError, match=r"a HEIC image; pip install 'hapicl\[heic\]' reads it"):
            read_header(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "b.HEIC")
    finally:
        how_to_read.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: images left out, because this installation cannot read them: 2 .cr2 (convert them, to "
        "JPEG or PNG for example), 1 .heic (pip install 'hapicl[heic]' reads them), 1 .heif (pip install "
        "'hapicl[heic]' reads them)"
    ]


def test_a_file_without_a_suffix_is_an_image_by_its_first_bytes(tmp_path, caplog):
    for number, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF", "TIFF")):
        Image.fromarray(np.full((4, 6, 3), 9 * number, np.uint8)).save(tmp_path / f"photo{number}", kind)
    (tmp_path / "README").write_text("BM is not a bitmap here")
    (tmp_path / "P1").write_text("P1 is a name")
    (tmp_path / "nothing").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert find_images(tmp_path) == [f"photo{number}" for number in range(5)]
    for path in find_images(tmp_path):
        assert read_image(tmp_path / path).shape == (4, 6, 3)
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_avif_and_heic_are_read_upright_where_their_library_is(kind, tmp_path):
    if how_to_read(kind):
        pytest.skip(f"{how_to_read(kind)} is missing here")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 250  # bright on the left; turned by EXIF: on top
    turned = Image.Exif()
    turned[0x0112] = 6
    path = tmp_path / f"photo.{kind.lower()}"
    if kind == "HEIC":
        heif = pytest.importorskip("pillow_heif")
        heif.from_pillow(Image.fromarray(pixels)).save(path, exif=turned.tobytes())
    else:
        Image.fromarray(pixels).save(path, kind, exif=turned)
    assert find_images(tmp_path) == [path.name]
    header = read_header(path.read_bytes(), path.name)
    assert header.kind == kind
    image = read_image(path)
    assert image.shape == (*header.size, 3)
    if header.size == (64, 48):  # the writer turned the pixels' EXIF tag into the file's own turn
        assert image[:28].min() > 200
        assert image[36:].max() < 50
    else:
        assert kind == "HEIC"  # whose EXIF tag does not count
        assert image[:, :28].min() > 200
    cut = path.with_name(f"cut{path.suffix}")
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"cut\."):
        read_image(cut)

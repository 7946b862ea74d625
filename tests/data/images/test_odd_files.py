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

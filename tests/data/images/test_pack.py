import io
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import cv2
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.data.commands import data
from hapicl.data.images import pack_build as packbuild
from hapicl.data.images.decode import ImageError, decode_image, image_size
from hapicl.data.images.folder import find_images
from hapicl.data.images.pack import ImagePack
from hapicl.data.images.pack_build import PackSettings, pack_images
from hapicl.data.loading.batch import Needs, ViewPolicy
from hapicl.data.loading.loader import Loader, LoaderOptions
from hapicl.data.masks.writer import write_masks

NEEDS = Needs(views=(ViewPolicy(size=24), ViewPolicy(size=24)))


def _batch(images, **settings):
    options = LoaderOptions(batch_size=8, seed=3, workers=0, augment=False, **settings)
    with Loader(images, None, NEEDS, options) as loader:
        return next(iter(loader.batches(0)))


def test_a_pack_holds_the_bytes_of_the_files(photo_folder, tmp_path):
    out = tmp_path / "images.h5"
    summary = pack_images(photo_folder, out, workers=1)
    pack = ImagePack(out)
    assert summary.images == len(pack) == 8
    assert summary.size == out.stat().st_size
    assert pack.paths() == find_images(photo_folder)
    for path in pack.paths():
        assert pack.read(path).data == (photo_folder / path).read_bytes()
        assert pack.read(path).image_size == image_size(photo_folder / path)
    assert not out.with_name("images.h5.parts").exists()


def test_the_loader_gives_the_same_batch_from_a_pack(photo_folder, tmp_path):
    pack_images(photo_folder, tmp_path / "images.h5", workers=1)
    expected, got = _batch(photo_folder), _batch(tmp_path / "images.h5")
    assert torch.equal(got.views[0], expected.views[0])
    assert torch.equal(got.index, expected.index)


def test_a_small_pack_gives_the_same_crops_of_smaller_pixels(photo_folder, tmp_path):
    out = tmp_path / "small.h5"
    pack_images(photo_folder, out, PackSettings(short_side=96), workers=1)
    pack = ImagePack(out)
    sides = [min(decode_image(pack.read(path).data, path).shape[:2]) for path in pack.paths()]
    assert sides == [96] * 8
    expected, got = _batch(photo_folder), _batch(out)
    for first, second in zip(got.geometry[0], expected.geometry[0], strict=True):
        assert torch.equal(first, second)
    assert torch.equal(got.image_size, expected.image_size)
    difference = (got.views[0].float() - expected.views[0].float()).abs().mean()
    assert difference < 8  # of 255: two resizes and a second JPEG


def test_packing_turns_upright_what_it_encodes_anew(tmp_path):
    folder = tmp_path / "turned"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(folder / "a.jpg", exif=exif)
    for settings in (PackSettings(), PackSettings(short_side=30)):
        out = tmp_path / f"{settings.short_side}.h5"
        pack_images(folder, out, settings, workers=1)
        data_, size, _ = ImagePack(out).read("a.jpg")
        assert size == (90, 60)
        side = 60 if settings.short_side is None else 30
        assert decode_image(data_, "a.jpg").shape == (side * 3 // 2, side, 3)


def test_unreadable_images_are_left_out_and_listed(photo_folder, tmp_path):
    (photo_folder / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "images.h5"
    result = CliRunner().invoke(
        data, ["pack", "--images", str(photo_folder), "--out", str(out), "--workers", "1"]
    )
    assert result.exit_code == 0
    assert "8 images" in result.output
    assert "broken.jpg: not an image" in result.output
    assert "broken.jpg" not in ImagePack(out).paths()
    again = CliRunner().invoke(data, ["pack", "--images", str(photo_folder), "--out", str(out)])
    assert "already finished" in again.output
    assert "broken.jpg" in again.output


def test_damaged_bytes_are_found(photo_folder, tmp_path):
    out = tmp_path / "images.h5"
    pack_images(photo_folder, out, workers=1)
    with h5py.File(out, "r+") as file:
        file["blob"][10] ^= 255
    pack = ImagePack(out)
    with pytest.raises(ImageError, match="wrong checksum"):
        pack.read(pack.paths()[0])
    assert pack.read(pack.paths()[1]).data


def test_other_files_are_refused(photo_folder, tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as an image pack"):
        _batch(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="is an HDF5 file of another program, no image pack; give a folder"):
        _batch(tmp_path / "other.h5")
    write_masks(tmp_path / "masks.h5", [], {"image_root": "x", "recipe": {}})
    with pytest.raises(UserError, match=r"masks.h5 is a mask file, no image pack; give a folder of images"):
        _batch(tmp_path / "masks.h5")
    for name, kind in (("masks.h5", "a mask file"), ("text.h5", "no HDF5 file"), ("", "a folder")):
        with pytest.raises(UserError, match=f"is there already and is {kind}.*; choose another --out"):
            pack_images(photo_folder, tmp_path / name, workers=1)
    pack_images(photo_folder, tmp_path / "images.h5", workers=1)
    with h5py.File(tmp_path / "images.h5", "r+") as file:
        file["offset"][-1] += 1
    with pytest.raises(UserError, match="damaged"):
        _batch(tmp_path / "images.h5")


def test_other_settings_or_images_at_the_same_file_are_refused(photo_folder, tmp_path):
    out = tmp_path / "images.h5"
    pack_images(photo_folder, out, workers=1)
    assert pack_images(photo_folder, out, workers=1).already_finished
    with pytest.raises(UserError, match="another --short-side"):
        pack_images(photo_folder, out, PackSettings(short_side=64), workers=1)
    Image.new("RGB", (20, 20)).save(photo_folder / "new.png")
    with pytest.raises(UserError, match="other images"):
        pack_images(photo_folder, out, workers=1)


def test_a_changed_image_of_the_same_name_is_noticed(photo_folder, tmp_path):
    out = tmp_path / "images.h5"
    pack_images(photo_folder, out, workers=1)
    changed = photo_folder / find_images(photo_folder)[0]
    Image.new("RGB", (20, 20)).save(changed)
    with pytest.raises(UserError, match="was made with other images"):
        pack_images(photo_folder, out, workers=1)


def test_no_workers_are_refused(photo_folder, tmp_path):
    with pytest.raises(UserError, match="--workers 0: give at least 1"):
        pack_images(photo_folder, tmp_path / "images.h5", workers=0)


@pytest.mark.parametrize("settings", [{"short_side": 3}, {"quality": 0}, {"quality": 101}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=f"setting {next(iter(settings))}: should be"):
        build(PackSettings, settings)


def test_an_interrupted_pack_goes_on(flat_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packbuild, "PART_IMAGES", 4)
    whole, out = tmp_path / "whole.h5", tmp_path / "images.h5"
    pack_images(flat_folder, whole, workers=1)
    made = []
    make_part = packbuild.make_part

    def fails_at_the_second(root, paths, part, settings):
        if made:
            raise KeyboardInterrupt
        made.append(part)
        make_part(root, paths, part, settings)

    monkeypatch.setattr(packbuild, "make_part", fails_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        pack_images(flat_folder, out, workers=1)
    assert not out.exists()
    monkeypatch.setattr(packbuild, "make_part", make_part)
    before = made[0].stat().st_mtime_ns
    with pytest.raises(UserError, match="unfinished pack with another --quality"):
        pack_images(flat_folder, out, PackSettings(quality=50), workers=1)
    assert made[0].stat().st_mtime_ns == before
    pack_images(flat_folder, out, workers=1)
    with h5py.File(whole) as first, h5py.File(out) as second:
        for name in ("path", "image_size", "offset", "crc32", "blob"):
            np.testing.assert_array_equal(first[name][...], second[name][...])


def test_images_left_out_are_named_in_a_line_each(flat_folder, tmp_path):
    odd = os.fsencode(flat_folder) + b"/caf\xe9\n.png"
    with open(odd, "wb") as file:
        file.write(b"no image")
    words = ["pack", "--images", str(flat_folder), "--out", str(tmp_path / "images.h5"), "--workers", "1"]
    said = CliRunner().invoke(data, words).stdout.splitlines()
    assert said[-2] == "1 images cannot be decoded and were left out:"
    assert said[-1].startswith(r"  caf\udce9\n.png: ")


def _workers_that_die(monkeypatch, *, after):
    """Let the workers die after so many parts of every call; gives the list of calls."""
    calls = []

    def run(jobs, *, workers):
        calls.append(workers)
        for number, (function, arguments, named) in enumerate(jobs):
            if number == after:
                raise BrokenProcessPool("a worker died")
            yield function(*arguments, **named)

    monkeypatch.setattr(packbuild, "PART_IMAGES", 3)
    monkeypatch.setattr(packbuild, "run_in_workers", run)
    return calls


def test_a_worker_that_dies_ended_the_pack_with_a_traceback(flat_folder, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.h5", tmp_path / "images.h5"
    pack_images(flat_folder, whole, workers=1)
    calls = _workers_that_die(monkeypatch, after=1)
    done = []
    pack_images(flat_folder, out, workers=2, progress=lambda *counts: done.append(counts))
    assert calls == [2, 2, 2]  # the last of four parts is made here
    assert done == [(3, 12), (6, 12), (9, 12), (12, 12)]
    with h5py.File(whole) as first, h5py.File(out) as second:
        np.testing.assert_array_equal(first["blob"][...], second["blob"][...])


def test_workers_that_die_again_and_again_end_the_pack_in_a_line(flat_folder, tmp_path, monkeypatch):
    out = tmp_path / "images.h5"
    calls = _workers_that_die(monkeypatch, after=0)
    with pytest.raises(UserError, match=r"died 3 times .* after 'image_00.png'; .* use fewer --workers"):
        pack_images(flat_folder, out, workers=2)
    assert len(calls) == 3
    assert (tmp_path / "images.h5.parts" / "plan.json").exists()
    assert pack_images(flat_folder, out, workers=1).images == 12


@pytest.mark.slow
def test_a_killed_pack_goes_on(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    encoded = cv2.imencode(".jpg", noise)[1].tobytes()
    for number in range(1200):
        (folder / f"{number:04d}.jpg").write_bytes(encoded)
    out = tmp_path / "images.h5"
    command = [sys.executable, "-m", "hapicl", "data", "pack", "--images", str(folder), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--workers", "1"], start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("images.h5.parts/part-*.h5")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("images.h5.parts/part-*.h5"))
    assert not out.exists()
    assert pack_images(folder, out, workers=1).images == 1200
    assert ImagePack(out).read("1199.jpg").data == encoded


def test_a_pack_crosses_processes_without_its_handle(photo_folder, tmp_path):
    pack_images(photo_folder, tmp_path / "images.h5", workers=1)
    pack = ImagePack(tmp_path / "images.h5")
    pack.paths()
    sent = pickle.dumps(pack)
    assert len(sent) < 400
    copy = pickle.load(io.BytesIO(sent))
    assert copy.paths() == pack.paths()

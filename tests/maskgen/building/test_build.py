"""Builds: the same file however it came about, and clear ends whatever happens on the way."""

import os
import shutil
import signal
import sys
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.data.images.decode import ImageError, decode_image
from hapicl.data.masks.format import MaskStatus
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import MaskRow, pack_mask
from hapicl.maskgen.building import build as build_module
from hapicl.maskgen.building import merge, plan
from hapicl.maskgen.building.build import BuildInterrupted, build_rows
from hapicl.maskgen.building.pool import Runner
from hapicl.maskgen.building.settings import BuildSettings
from hapicl.maskgen.building.worker import make_rows

try:
    from joblib.externals import cloudpickle  # until joblib 1.5
except ImportError:
    import cloudpickle

UPDATE = BuildSettings(update=True)

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # worker processes cannot import a test


@dataclass(frozen=True)
class ThresholdRows:
    """A quick stand-in for a recipe: what is brighter than a level. Names make trouble on demand."""

    level: int = 100

    def as_dict(self):
        return {"name": "threshold", "level": self.level}

    def row(self, images, path):
        if "killer" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            image = decode_image(images.read_bytes(path), path)
        except ImageError as error:
            return MaskRow(path=path, reason=error.reason, file_bytes=8 if "image04" in path else 0)
        size = images.file_bytes(path)
        return pack_mask(path, image[:, :, 0] > self.level, image.shape[:2], confidence=0.7, file_bytes=size)


class HereRunner(Runner):
    """Runs tasks in this process, one after another: the logic of a build without the cost of workers."""

    def _stream(self, tasks, under_way):
        for task in tasks:
            under_way[task] = None
            yield make_rows(self.images, task, self.maker)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(build_module, "Runner", HereRunner)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(plan, "SMALL_PART_IMAGES", 4)
    monkeypatch.setattr(plan, "TASK_IMAGES", 2)


@pytest.fixture
def many(tmp_path):
    """30 images of 20 x 30 pixels in three folders, one of them damaged."""
    root = tmp_path / "images"
    generator = np.random.default_rng(0)
    for number in range(30):
        path = root / f"class{number % 3}" / f"image{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), generator.integers(0, 200, (20, 30, 3), dtype=np.uint8))
    (root / "class1" / "image04.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def digests(path):
    attributes = MaskReader(path).attributes
    return attributes["content_digest"], attributes["blob_digest"]


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "images")


def test_a_build_makes_a_row_of_every_image_and_leaves_only_the_file(tmp_path, many, here, small_parts):
    calls = []
    summary = build_rows(
        many, tmp_path / "masks.h5", ThresholdRows(), progress=lambda *call: calls.append(call)
    )
    reader = MaskReader(tmp_path / "masks.h5")
    assert list(reader.paths) == sorted(str(path.relative_to(many)) for path in many.rglob("*.png"))
    assert reader.image_root == str(many.resolve())
    assert reader.recipe == {"name": "threshold", "level": 100}
    assert reader.status("class1/image04.png") is MaskStatus.UNREADABLE
    assert summary.counts["ok"] == 29
    assert list(summary.failures) == ["class1/image04.png"]
    assert calls[0] == (0, 30, 0)
    assert calls[-1] == (30, 30, 1)
    assert leftovers(tmp_path) == ["masks.h5"]
    image = cv2.imread(str(many / "class0/image00.png"))[:, :, ::-1]
    np.testing.assert_array_equal(reader["class0/image00.png"], image[:, :, 0] > 100)


def test_a_finished_file_is_left_alone_and_another_recipe_or_folder_refused(tmp_path, many, here):
    build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    before = (tmp_path / "masks.h5").read_bytes()
    assert build_rows(many, tmp_path / "masks.h5", ThresholdRows()).already_finished
    with pytest.raises(UserError, match="level: 100, now 50"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(50))
    shutil.copytree(many, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="elsewhere"):
        build_rows(tmp_path / "elsewhere", tmp_path / "masks.h5", ThresholdRows())
    assert (tmp_path / "masks.h5").read_bytes() == before
    assert leftovers(tmp_path) == ["elsewhere", "masks.h5"]


class Stop(Exception):
    """Stands for the death of the process: nothing is cleaned up after it by the build."""


@pytest.mark.parametrize("after", [0, 1, 4, 13, 29])
def test_a_build_that_died_goes_on_to_the_same_file(tmp_path, many, here, small_parts, after):
    build_rows(many, tmp_path / "whole.h5", ThresholdRows())

    def die(done, total, failures):
        if done > after:
            raise Stop

    with pytest.raises(Stop):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), progress=die)
    assert not (tmp_path / "masks.h5").exists()
    finished = len(list((tmp_path / "masks.h5.parts").glob("part-*.h5")))
    assert finished == after // 4
    summary = build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    assert summary.built == 30 - 4 * finished
    assert digests(tmp_path / "masks.h5") == digests(tmp_path / "whole.h5")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_a_usable_file_and_goes_on(tmp_path, many, here, small_parts, number):
    build_rows(many, tmp_path / "whole.h5", ThresholdRows())

    def interrupt(done, total, failures):
        if done == 18:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(BuildInterrupted, match="run the same command again") as caught:
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), progress=interrupt)
    assert caught.value.number == number
    assert signal.getsignal(number) is before
    reader = MaskReader(tmp_path / "masks.h5")
    assert len(reader) == 16
    assert not reader.attributes["complete"]
    assert reader["class0/image00.png"].shape == (20, 30)
    assert build_rows(many, tmp_path / "masks.h5", ThresholdRows()).built == 14
    assert digests(tmp_path / "masks.h5") == digests(tmp_path / "whole.h5")
    assert leftovers(tmp_path) == ["masks.h5", "whole.h5"]


def test_an_unfinished_build_refuses_another_recipe(tmp_path, many, here, small_parts):
    def die(done, total, failures):
        if done > 8:
            raise Stop

    with pytest.raises(Stop):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), progress=die)
    with pytest.raises(UserError, match="unfinished build"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(50))


def change(many):
    """One image more, one gone, one replaced by another of the same name."""
    cv2.imwrite(str(many / "class0" / "new.png"), np.full((5, 5, 3), 150, np.uint8))
    (many / "class0" / "image00.png").unlink()
    cv2.imwrite(str(many / "class0" / "image03.png"), np.full((9, 7, 3), 50, np.uint8))


def test_a_changed_folder_is_refused_and_update_makes_the_file_of_the_new_folder(tmp_path, many, here):
    build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    change(many)
    with pytest.raises(UserError, match=r"1 new \(e\.g\. class0/new\.png\), 1 gone .*--update"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    assert leftovers(tmp_path) == ["masks.h5"]
    assert build_rows(many, tmp_path / "masks.h5", ThresholdRows(), UPDATE).built == 2
    build_rows(many, tmp_path / "whole.h5", ThresholdRows())
    assert digests(tmp_path / "masks.h5") == digests(tmp_path / "whole.h5")
    assert build_rows(many, tmp_path / "masks.h5", ThresholdRows(), UPDATE).already_finished


def test_update_of_images_that_are_only_gone_drops_their_rows(tmp_path, many, here):
    build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    shutil.rmtree(many / "class2")
    assert build_rows(many, tmp_path / "masks.h5", ThresholdRows(), UPDATE).images == 20


def test_a_folder_that_changes_during_an_unfinished_build_keeps_its_parts_on_update(
    tmp_path, many, here, small_parts
):
    def die(done, total, failures):
        if done > 20:
            raise Stop

    with pytest.raises(Stop):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), progress=die)
    change(many)
    with pytest.raises(UserError, match="--update to keep what is finished"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    summary = build_rows(many, tmp_path / "masks.h5", ThresholdRows(), UPDATE)
    assert summary.built == 12  # 10 that were not done, one new, one changed
    build_rows(many, tmp_path / "whole.h5", ThresholdRows())
    assert digests(tmp_path / "masks.h5") == digests(tmp_path / "whole.h5")


def test_an_interrupted_update_leaves_the_old_file_and_goes_on(tmp_path, many, here, small_parts):
    build_rows(many, tmp_path / "masks.h5", ThresholdRows(), BuildSettings(limit=10))
    before = (tmp_path / "masks.h5").read_bytes()

    def interrupt(done, total, failures):
        if done == 12:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(BuildInterrupted):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), UPDATE, progress=interrupt)
    assert (tmp_path / "masks.h5").read_bytes() == before
    assert build_rows(many, tmp_path / "masks.h5", ThresholdRows(), UPDATE).built == 12
    build_rows(many, tmp_path / "whole.h5", ThresholdRows())
    assert digests(tmp_path / "masks.h5") == digests(tmp_path / "whole.h5")


def test_shards_join_to_the_same_file(tmp_path, many, here, small_parts):
    build_rows(many, tmp_path / "whole.h5", ThresholdRows())
    out = tmp_path / "masks.h5"
    assert build_rows(many, out, ThresholdRows(), BuildSettings(shard=(1, 3))).missing_part_files == 5
    with pytest.raises(UserError, match="5 of 8 part files are missing"):
        merge.join_part_files(out, plan.PartFiles(out))
    assert build_rows(many, out, ThresholdRows(), BuildSettings(shard=(3, 3))).missing_part_files == 3
    assert build_rows(many, out, ThresholdRows(), BuildSettings(shard=(2, 3))).missing_part_files == 0
    merge.join_part_files(out, plan.PartFiles(out))
    assert digests(out) == digests(tmp_path / "whole.h5")


def test_a_shard_without_images_said_nothing(tmp_path, many, here, caplog):
    summary = build_rows(many, tmp_path / "m.h5", ThresholdRows(), BuildSettings(shard=(3, 3)))
    assert summary.built == 0
    assert "shard 3/3 has no images" in caplog.text
    assert "images are too few for more shards than i/1" in caplog.text


def test_shards_on_disks_of_their_own_join_too(tmp_path, many, here, small_parts):
    build_rows(many, tmp_path / "whole.h5", ThresholdRows())
    for number in (1, 2):
        out = tmp_path / f"disk{number}" / "masks.h5"
        build_rows(many, out, ThresholdRows(), BuildSettings(shard=(number, 2)))
    sources = [tmp_path / f"disk{number}" / "masks.h5.parts" for number in (1, 2)]
    assert merge.merge_files(tmp_path / "masks.h5", sources) == 30
    assert digests(tmp_path / "masks.h5") == digests(tmp_path / "whole.h5")
    build_rows(many, tmp_path / "other.h5", ThresholdRows(7))
    with pytest.raises(UserError, match="different recipes"):
        merge.merge_files(tmp_path / "no.h5", [tmp_path / "whole.h5", tmp_path / "other.h5"])


def test_two_builds_of_one_file_do_not_run_at_once(tmp_path, many, here):
    parts = plan.PartFiles(tmp_path / "masks.h5")
    with parts.locked(), pytest.raises(UserError, match="is in use by"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    with parts.locked((1, 2)), pytest.raises(UserError, match="is in use by"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), BuildSettings(shard=(1, 2)))
    with parts.locked((1, 2)):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), BuildSettings(shard=(2, 2)))


def test_missing_and_empty_folders_and_wrong_options_are_explained(tmp_path, many, here):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        build_rows(tmp_path / "empty", tmp_path / "masks.h5", ThresholdRows())
    with pytest.raises(UserError, match="cannot read the image folder"):
        build_rows(tmp_path / "none", tmp_path / "masks.h5", ThresholdRows())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        build_rows(many, tmp_path / "file" / "masks.h5", ThresholdRows())
    for options in (
        {"workers": 0},
        {"limit": 0},
        {"shard": (0, 4)},
        {"shard": (5, 4)},
        {"backend": "spark"},
        {"scheduler": "localhost:1"},
    ):
        with pytest.raises(UserError):
            build_rows(many, tmp_path / "masks.h5", ThresholdRows(), build(BuildSettings, options))
    assert leftovers(tmp_path) == ["empty", "file"]


def test_a_folder_that_vanishes_stops_the_build_and_keeps_its_parts(tmp_path, many, here, small_parts):
    def vanish(done, total, failures):
        if done == 12:
            many.rename(tmp_path / "images.gone")

    with pytest.raises(UserError, match=r"listed but cannot be read any more.*3 of 8 part files are kept"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), progress=vanish)
    with pytest.raises(UserError, match="cannot read the image folder"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    (tmp_path / "images.gone").rename(many)
    assert build_rows(many, tmp_path / "masks.h5", ThresholdRows()).built == 18


def test_a_full_disk_stops_the_build_and_keeps_its_parts(tmp_path, many, here, small_parts, monkeypatch):
    def full(path, *arguments, **options):
        if "part-000002" in str(path):
            raise OSError(28, "No space left on device")
        return h5py_file(path, *arguments, **options)

    import h5py

    h5py_file = h5py.File
    monkeypatch.setattr("hapicl.data.masks.writer.h5py.File", full)
    with pytest.raises(UserError, match=r"No space left on device.*2 of 8 part files are kept"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    monkeypatch.undo()


def test_a_broken_link_is_a_row(tmp_path, many, here):
    (many / "broken.jpg").symlink_to(many / "nowhere.jpg")
    summary = build_rows(many, tmp_path / "masks.h5", ThresholdRows())
    assert "cannot be read" in summary.failures["broken.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_make_the_same_file(tmp_path, many, small_parts, monkeypatch, workers):
    build_rows(many, tmp_path / "masks.h5", ThresholdRows(), BuildSettings(workers=workers))
    monkeypatch.setattr(build_module, "Runner", HereRunner)
    build_rows(many, tmp_path / "whole.h5", ThresholdRows())
    assert digests(tmp_path / "masks.h5") == digests(tmp_path / "whole.h5")


@pytest.mark.slow
def test_an_image_that_kills_its_worker_becomes_a_row(tmp_path, many, small_parts):
    shutil.copy(many / "class0" / "image00.png", many / "class1" / "killer.png")
    summary = build_rows(many, tmp_path / "masks.h5", ThresholdRows(), BuildSettings(workers=2))
    assert "died twice" in summary.failures["class1/killer.png"]
    assert summary.counts["ok"] == 29


@pytest.mark.slow
def test_workers_that_die_on_everything_stop_the_build(tmp_path, many, monkeypatch):
    monkeypatch.setattr("hapicl.maskgen.building.pool._TOO_MANY_DEATHS", 2)
    for path in list(many.rglob("*.png")):
        path.rename(path.with_name(f"killer_{path.name}"))
    with pytest.raises(UserError, match="workers in a row died"):
        build_rows(many, tmp_path / "masks.h5", ThresholdRows(), BuildSettings(workers=2))

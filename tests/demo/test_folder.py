"""The demo's image folder on disk."""

import numpy as np
import pytest
from PIL import Image

from hapicl.demo.folder import build_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("a folder"), per_class=2, seed=0)


def test_every_image_has_a_truth_of_its_size(folder):
    names = [*folder.photographs, *folder.collages]
    assert sorted(names) == sorted(
        path.relative_to(folder.images).as_posix() for path in folder.images.rglob("*.*")
    )
    for name in names:
        with (
            Image.open(folder.images / name) as image,
            Image.open((folder.truth / name).with_suffix(".png")) as truth,
        ):
            assert image.size == truth.size
            values = np.unique(np.asarray(truth))
            assert values.tolist() == [0, 255], name


def test_classes_are_folders(folder):
    assert folder.labels == tuple(sorted(path.name for path in folder.images.iterdir()))
    assert len(folder.collages) == 2 * (len(folder.labels) - 1)  # the photographer is not cut out


def test_a_larger_folder_holds_the_same_collages_and_replaces_the_old_one(folder, tmp_path):
    (tmp_path / "images" / "old").mkdir(parents=True)
    larger = build_folder(tmp_path, per_class=3, seed=0)
    for name in folder.collages:
        assert (folder.images / name).read_bytes() == (larger.images / name).read_bytes()
    assert not (tmp_path / "images" / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "truth"]


def test_the_photographs_are_copied_as_shipped(folder):
    for name in folder.photographs:
        assert (folder.images / name).stat().st_size > 50_000
        assert name.split("/")[1] in folder.credits

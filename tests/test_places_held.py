"""Every command that writes for a while refuses a place that another process holds, before it changes it."""

import os
import shutil

import pytest
import small_run
from click.testing import CliRunner
from labelled_data import colour_folders

from hapicl import cli
from hapicl.common.errors import UserError
from hapicl.common.locks import hold_file, hold_folder
from hapicl.data.build_folder import BuildFolder

__all__ = ["colour_folders"]

HOLD = {
    "run": lambda place: hold_folder(place, advice="wait"),
    "demo": lambda place: hold_folder(place, advice="wait"),
    "result.json": lambda place: hold_file(place, advice="wait"),
    "compare": lambda place: hold_folder(place, advice="wait"),
    "refined.h5": lambda place: hold_folder(place.with_name("refined.h5.learning"), advice="wait"),
}
SIZE = ["--arch", "resnet18", "--image-size", "32", "--device", "cpu"]


def commands(images, classes, masks):
    """Words of every command without its --out, by a name of what it writes."""
    return {
        "run": ["pretrain", "--masks", masks, *SIZE, "--batch-size", "4", "--steps", "2", "--workers", "0"],
        "demo": ["demo", "--small"],
        "result.json": ["evaluate", "knn", "random", "--train", classes, "--test", classes, *SIZE],
        "compare": ["compare", "segment", "random", "torchvision:resnet18", *SIZE],
        "images.h5": ["data", "pack", "--images", images, "--workers", "1"],
        "built.h5": ["masks", "build", "--images", images, "--recipe", "fast", "--workers", "1"],
        "merged.h5": ["masks", "merge", masks],
        "coco.h5": ["masks", "import", "--from", "coco.json", "--images", images],
        "tree.h5": ["masks", "import", "--from", "tree", "--images", images, "--workers", "1"],
        "refined.h5": ["masks", "refine", "--images", images, "--masks", masks, "--train-images", "4"],
    }


@pytest.mark.parametrize("name", list(commands("", "", "")))
def test_a_place_that_is_held_is_refused_in_a_line(name, tmp_path, flat_folder, colour_folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    shutil.copy(flat_folder / "image_00.png", tmp_path / "tree")
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    masks = small_run.write_box_masks(flat_folder, tmp_path / "masks.h5")
    words = commands(str(flat_folder), str(colour_folders / "train"), masks)[name]
    place = tmp_path / name
    hold = HOLD.get(name, lambda place: BuildFolder(place).locked())
    with hold(place):
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        result = CliRunner().invoke(cli.command_line, [*words, "--out", str(place)])
        assert isinstance(result.exception, UserError), result.output
        assert f" is in use by process {os.getpid()} on " in str(result.exception)
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert not place.exists()

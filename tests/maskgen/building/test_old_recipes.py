"""Mask files and unfinished builds whose recipe was written when `iterations` was still called `looks`."""

import json

import h5py
import numpy as np
import pytest

from hapicl.common.errors import UserError
from hapicl.data.masks.format import digested_recipe, read_recipe
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import content_digest
from hapicl.maskgen.building import build as build_module
from hapicl.maskgen.building import plan
from hapicl.maskgen.building.build import build_masks
from hapicl.maskgen.building.pool import Runner
from hapicl.maskgen.building.settings import BuildSettings
from hapicl.maskgen.building.worker import make_rows
from hapicl.maskgen.inspection.score import recorded_recipe
from hapicl.maskgen.inspection.verify import verify_masks
from hapicl.maskgen.recipes import RECIPES


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Build in this process, four images to a part file."""

    class HereRunner(Runner):
        def _stream(self, tasks, under_way):
            for task in tasks:
                under_way[task] = None
                yield make_rows(self.images, task, self.maker)

    monkeypatch.setattr(build_module, "Runner", HereRunner)
    monkeypatch.setattr(plan, "SMALL_PART_IMAGES", 4)


def make_old(path):
    """Write the recipe of a mask file as it was written before, and nothing else."""
    with h5py.File(path, "r+") as file:
        description = json.loads(file.attrs["description"])
        description["recipe"]["looks"] = description["recipe"].pop("iterations")
        file.attrs["description"] = json.dumps(description, sort_keys=True)


@pytest.fixture
def old(flat_folder, tmp_path):
    build_masks(flat_folder, tmp_path / "masks.h5", "quality")
    make_old(tmp_path / "masks.h5")
    return tmp_path / "masks.h5"


def test_a_recipe_is_read_by_todays_names_and_digested_by_the_first_ones():
    recipe = RECIPES["quality"].replace(max_hole=None).as_dict()  # there was no such parameter
    first = digested_recipe(recipe)
    assert first["looks"] == recipe["iterations"] == 2
    assert "iterations" not in first
    assert read_recipe(first) == read_recipe(recipe) == recipe
    nothing = {name: np.empty(0) for name in ("path", "image_size", "mask_size", "coverage", "confidence",
               "status", "crc32", "file_bytes", "reason_row", "reason")}  # fmt: skip
    # what the version before wrote for an empty file of this recipe
    assert (
        content_digest(nothing, recipe)
        == content_digest(nothing, first)
        == "5aa09b265deb02c47b39b798640e96ef"
    )


def test_an_old_file_is_read_verified_and_its_recipe_known(old):
    reader = MaskReader(old)
    assert reader.recipe == json.loads(json.dumps(RECIPES["quality"].as_dict()))
    assert recorded_recipe(reader) == RECIPES["quality"]
    assert verify_masks(old).problems == []


def test_a_file_of_a_recipe_that_has_changed_since_is_known_by_its_own_parameters(flat_folder, tmp_path):
    before = RECIPES["quality"].replace(max_hole=None)
    build_masks(flat_folder, tmp_path / "masks.h5", before)
    reader = MaskReader(tmp_path / "masks.h5")
    assert "max_hole" not in reader.recipe
    assert recorded_recipe(reader) == before
    with pytest.raises(UserError, match=r"other parameters \(max_hole: None, now 0.01\)"):
        build_masks(flat_folder, tmp_path / "masks.h5", "quality")


def test_an_old_file_is_finished_and_updated_without_making_its_masks_again(old, flat_folder):
    assert build_masks(flat_folder, old, "quality").already_finished
    before = {path: MaskReader(old)[path] for path in MaskReader(old).paths}
    digest = MaskReader(old).attributes["content_digest"]
    (flat_folder / "image_00.png").rename(flat_folder / "renamed.png")
    summary = build_masks(flat_folder, old, "quality", BuildSettings(update=True))
    assert summary.built == 1
    (flat_folder / "renamed.png").rename(flat_folder / "image_00.png")
    build_masks(flat_folder, old, "quality", BuildSettings(update=True))
    for path, mask in before.items():
        np.testing.assert_array_equal(MaskReader(old)[path], mask)
    assert MaskReader(old).attributes["content_digest"] == digest


def test_an_old_unfinished_build_goes_on(flat_folder, tmp_path):
    out = tmp_path / "masks.h5"
    build_masks(flat_folder, tmp_path / "whole.h5", "quality")
    build_masks(flat_folder, out, "quality", BuildSettings(shard=(1, 2)))
    parts = plan.PartFiles(out)
    for part in parts.finished():
        make_old(parts.part_path(part))
    begun = json.loads((parts.path / "plan.json").read_text())
    begun["recipe"]["looks"] = begun["recipe"].pop("iterations")
    (parts.path / "plan.json").write_text(json.dumps(begun))
    assert build_masks(flat_folder, out, "quality").built == 4  # of 12; two part files were there
    assert (
        MaskReader(out).attributes["content_digest"]
        == MaskReader(tmp_path / "whole.h5").attributes["content_digest"]
    )

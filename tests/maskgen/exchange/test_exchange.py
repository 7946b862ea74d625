"""Masks from elsewhere and to elsewhere, and scoring and checking what came of it."""

import json
import pathlib
import sys

import cv2
import h5py
import numpy as np
import pytest

from hapicl.common.errors import UserError
from hapicl.data.images.decode import read_image
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import MaskRow, pack_mask, write_masks
from hapicl.maskgen.building import build as build_module
from hapicl.maskgen.building.merge import describe
from hapicl.maskgen.building.pool import Runner
from hapicl.maskgen.building.worker import make_rows
from hapicl.maskgen.exchange.coco import import_coco
from hapicl.maskgen.exchange.tree import export_names, export_tree, import_tree, resize_mask
from hapicl.maskgen.inspection.score import is_photograph, match_stems, score_masks
from hapicl.maskgen.inspection.verify import verify_masks


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Run imports in this process."""

    class HereRunner(Runner):
        def _stream(self, tasks, under_way):
            for task in tasks:
                under_way[task] = None
                yield make_rows(self.images, task, self.maker)

    monkeypatch.setattr(build_module, "Runner", HereRunner)


SIZES = {"a/one.jpg": (40, 60), "a/two.png": (30, 30), "b/three.jpg": (25, 50)}


@pytest.fixture
def folder(tmp_path):
    """Three images and a random mask of each at its size."""
    root = tmp_path / "images"
    generator = np.random.default_rng(0)
    masks = {}
    for path, size in SIZES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / path), generator.integers(0, 255, (*size, 3), dtype=np.uint8))
        masks[path] = generator.random(size) < 0.4
    return root, masks


@pytest.fixture
def mask_file(tmp_path, folder):
    root, masks = folder
    rows = [
        pack_mask(path, mask, mask.shape, file_bytes=(root / path).stat().st_size)
        for path, mask in masks.items()
    ]
    write_masks(tmp_path / "masks.h5", rows, describe({"name": "test"}, str(root)))
    return tmp_path / "masks.h5"


def test_exported_masks_come_back_by_import(tmp_path, folder, mask_file):
    assert list(export_tree(mask_file, tmp_path / "tree")) == sorted(SIZES)
    stored = cv2.imread(str(tmp_path / "tree/a/one.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, folder[1]["a/one.jpg"] * np.uint8(255))
    summary = import_tree(tmp_path / "tree", folder[0], tmp_path / "again.h5")
    assert summary.counts["ok"] == 3
    for path, mask in folder[1].items():
        np.testing.assert_array_equal(MaskReader(tmp_path / "again.h5")[path], mask)
    with pytest.raises(UserError, match="not an empty folder"):
        list(export_tree(mask_file, tmp_path / "tree"))


def test_export_brings_a_small_mask_to_its_images_size(tmp_path):
    mask = np.zeros((4, 4), bool)
    mask[:, 2:] = True
    write_masks(tmp_path / "m.h5", [pack_mask("x.jpg", mask, (40, 40))], describe({"name": "t"}, "/"))
    list(export_tree(tmp_path / "m.h5", tmp_path / "full"))
    full = cv2.imread(str(tmp_path / "full/x.png"), 0)
    assert full.shape == (40, 40)
    assert full[:, 21:].all()
    assert not full[:, :19].any()
    list(export_tree(tmp_path / "m.h5", tmp_path / "stored", stored_size=True))
    assert cv2.imread(str(tmp_path / "stored/x.png"), 0).shape == (4, 4)


def test_images_that_share_a_stem_keep_their_suffix():
    assert export_names(["a/x.jpg", "a/x.png", "a/y.jpg", "b/x.jpg"]) == [
        "a/x.jpg.png",
        "a/x.png.png",
        "a/y.png",
        "b/x.png",
    ]


def test_npz_masks_zero_one_values_and_missing_masks(tmp_path, folder):
    root, masks = folder
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    np.savez(tree / "a" / "one.npz", masks["a/one.jpg"])
    np.savez_compressed(tree / "a" / "two.npz", mask=masks["a/two.png"].astype(np.float32), other=1)
    summary = import_tree(tree, root, tmp_path / "masks.h5")
    reader = MaskReader(tmp_path / "masks.h5")
    for path in ("a/one.jpg", "a/two.png"):
        np.testing.assert_array_equal(reader[path], masks[path])
    assert "no mask" in summary.failures["b/three.jpg"]
    assert np.isnan(reader.confidence("a/one.jpg"))


def test_damaged_and_misshapen_masks_are_rows_with_reasons(tmp_path, folder):
    root, _ = folder
    (tmp_path / "tree" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "tree/a/one.png"), np.zeros((10, 10), np.uint8))
    (tmp_path / "tree/a/two.npz").write_bytes(b"no archive")
    failures = import_tree(tmp_path / "tree", root, tmp_path / "masks.h5").failures
    assert "another shape" in failures["a/one.jpg"]
    assert "cannot be read as npz" in failures["a/two.png"]


def test_import_reduces_and_refuses_a_tree_of_other_images(tmp_path, folder, mask_file):
    root, masks = folder
    list(export_tree(mask_file, tmp_path / "tree"))
    import_tree(tmp_path / "tree", root, tmp_path / "small.h5", long_side=20)
    small = MaskReader(tmp_path / "small.h5")["a/one.jpg"]
    np.testing.assert_array_equal(small, resize_mask(masks["a/one.jpg"], (13, 20)))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"none of the 3 images .* would be a/one\.png"):
        import_tree(tmp_path / "other", root, tmp_path / "no.h5")
    with pytest.raises(UserError, match="no folder of masks"):
        import_tree(tmp_path / "none", root, tmp_path / "no.h5")


def coco(folder):
    """Annotations of all three kinds: uncompressed RLE, compressed RLE, polygons."""
    masks = pytest.importorskip("faster_coco_eval.core.mask", reason="needs the extra `eval`")
    truths = folder[1]
    images, annotations = [], []
    for number, (path, size) in enumerate(SIZES.items()):
        images.append({"id": number, "file_name": path, "height": size[0], "width": size[1]})
    flat = truths["a/one.jpg"].ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [flat[-1] ^ True]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    annotations.append({"image_id": 0, "segmentation": {"counts": counts, "size": list(SIZES["a/one.jpg"])}})
    compressed = masks.encode(np.asfortranarray(truths["a/two.png"].astype(np.uint8)))
    if isinstance(compressed["counts"], bytes):
        compressed["counts"] = compressed["counts"].decode()
    annotations.append({"image_id": 1, "segmentation": dict(compressed)})
    annotations.append({"image_id": 2, "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]]})
    annotations.append({"image_id": 2, "segmentation": [[30, 5, 40, 5, 40, 15, 30, 15]]})
    return {"images": images, "annotations": annotations}


def test_coco_segments_of_every_kind_are_joined(tmp_path, folder):
    (tmp_path / "coco.json").write_text(json.dumps(coco(folder)))
    summary = import_coco(tmp_path / "coco.json", folder[0], tmp_path / "masks.h5")
    assert summary.counts["ok"] == 3
    reader = MaskReader(tmp_path / "masks.h5")
    for path in ("a/one.jpg", "a/two.png"):
        np.testing.assert_array_equal(reader[path], folder[1][path])
    squares = np.zeros((25, 50), bool)
    squares[5:15, 5:15] = squares[5:15, 30:40] = True
    np.testing.assert_array_equal(reader["b/three.jpg"], squares)


def test_coco_files_of_other_images_sizes_or_kinds_are_explained(tmp_path, folder):
    content = coco(folder)
    content["images"][0]["height"] = 41
    del content["images"][1]
    content["annotations"][2]["segmentation"] = {"counts": [3]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"names 2 of the 3 images .* the first is a/one\.jpg: .* \(41, 60\)"):
        import_coco(tmp_path / "coco.json", folder[0], tmp_path / "masks.h5")
    for entry in content["images"]:
        entry["file_name"] = f"elsewhere/{entry['file_name']}"
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="names none of the 3 images"):
        import_coco(tmp_path / "coco.json", folder[0], tmp_path / "masks.h5")
    (tmp_path / "coco.json").write_text("{}")
    with pytest.raises(UserError, match="lacks the list 'images' of COCO's format"):
        import_coco(tmp_path / "coco.json", folder[0], tmp_path / "masks.h5")
    with pytest.raises(UserError, match="cannot read"):
        import_coco(tmp_path / "none.json", folder[0], tmp_path / "masks.h5")


def test_coco_without_its_library_says_what_to_install(tmp_path, folder, monkeypatch):
    from hapicl.common.coco import coco_masks

    (tmp_path / "coco.json").write_text(json.dumps(coco(folder)))
    coco_masks.cache_clear()
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.mask", None)
    with pytest.raises(UserError, match=r"hapicl\[eval\]"):
        import_coco(tmp_path / "coco.json", folder[0], tmp_path / "masks.h5")


def test_scores_of_a_file_against_itself_and_against_others(tmp_path, folder, mask_file):
    list(export_tree(mask_file, tmp_path / "truth"))
    scores = score_masks(mask_file, tmp_path / "truth")
    assert scores.mean == pytest.approx(
        {"iou": 1, "max_f_beta": 1, "adaptive_f_beta": 1, "mae": 0, "s_measure": 1}
    )
    (tmp_path / "truth/a/two.png").unlink()
    cv2.imwrite(str(tmp_path / "truth/a/one.png"), (~folder[1]["a/one.jpg"]).astype(np.uint8))
    scores = score_masks(mask_file, tmp_path / "truth")
    assert scores.images["a/one.jpg"]["iou"] == 0
    assert scores.mean["iou"] == 0.5
    assert scores.without_truth == 1


def test_scores_take_saliency_maps_and_count_missing_masks_as_empty(tmp_path, folder):
    root, masks = folder
    rows = [pack_mask("a/one.jpg", masks["a/one.jpg"], (40, 60)), MaskRow(path="a/two.png", reason="broken")]
    write_masks(tmp_path / "masks.h5", rows, describe({"name": "test"}, str(root)))
    (tmp_path / "truth").mkdir()
    (tmp_path / "maps").mkdir()
    for path in ("a/one.jpg", "a/two.png"):
        name = f"{pathlib.Path(path).stem}.png"
        cv2.imwrite(str(tmp_path / "truth" / name), masks[path] * np.uint8(255))
        cv2.imwrite(str(tmp_path / "maps" / name), (masks[path] * 100 + 50).astype(np.uint8))
    scores = score_masks(tmp_path / "masks.h5", tmp_path / "truth", saliency=tmp_path / "maps")
    assert scores.without_mask == ["a/two.png"]
    assert scores.images["a/two.png"]["iou"] == 0
    assert scores.images["a/one.jpg"]["max_f_beta"] == pytest.approx(1)
    fraction = masks["a/one.jpg"].mean()
    mae = fraction * (1 - 150 / 255) + (1 - fraction) * 50 / 255
    assert scores.images["a/one.jpg"]["mae"] == pytest.approx(mae, abs=1e-6)
    with pytest.raises(UserError, match="does not have"):
        score_masks(tmp_path / "masks.h5", tmp_path / "truth", images=root)


def test_photographs_were_scored_against_as_if_they_were_masks(folder, mask_file, tmp_path):
    rng = np.random.default_rng(0)
    photograph = cv2.GaussianBlur(rng.integers(0, 256, (200, 300, 3), np.uint8), (0, 0), 3)
    rows = np.linspace(20, 230, 200)[:, None, None] + rng.normal(0, 9, (200, 300, 1))
    grey = np.repeat(rows.clip(0, 255).astype(np.uint8), 3, axis=2)
    mask = np.zeros((200, 300, 3), np.uint8)
    cv2.ellipse(mask, (150, 100), (90, 60), 10, 0, 360, (255, 255, 255), -1, cv2.LINE_AA)
    noisy = cv2.imdecode(cv2.imencode(".jpg", mask)[1], cv2.IMREAD_COLOR)
    labels = rng.integers(0, 256, (21, 3), np.uint8)[rng.integers(0, 21, (200, 300))]
    assert is_photograph(photograph)
    assert is_photograph(grey)
    for truth in (mask, noisy, labels, cv2.GaussianBlur(mask, (0, 0), 4)):
        assert not is_photograph(truth)
    root, path = folder[0], MaskReader(mask_file).paths[0]
    name = tmp_path / "truth" / path
    name.parent.mkdir(parents=True)
    cv2.imwrite(str(name.with_suffix(".png")), cv2.resize(photograph, read_image(root / path).shape[1::-1]))
    with pytest.raises(UserError, match="is a photograph, no mask; give --truth the folder of true masks"):
        score_masks(mask_file, tmp_path / "truth")


def test_ambiguous_stems_and_strangers_are_refused(tmp_path, mask_file):
    (tmp_path / "empty").mkdir()
    for name in ("x/one.png", "y/one.png"):
        (tmp_path / "truth" / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "truth" / name), np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match="several images or files are called one"):
        match_stems(["a/one.jpg"], tmp_path / "truth")
    with pytest.raises(UserError, match="has a truth in"):
        score_masks(mask_file, tmp_path / "empty")


def test_verify_finds_nothing_in_a_good_file(folder, mask_file):
    report = verify_masks(mask_file, folder[0])
    assert (report.rows, report.masks, report.images, report.problems) == (3, 3, 3, [])


def test_verify_finds_each_kind_of_damage(tmp_path, folder, mask_file):
    def damaged(column, row, value):
        with h5py.File(mask_file, "r+") as file:
            old = file[column][row]
            file[column][row] = value
        problems = verify_masks(mask_file).problems
        with h5py.File(mask_file, "r+") as file:
            file[column][row] = old
        return problems

    assert any("crc32" in problem for problem in damaged("crc32", 1, 7))
    blob = h5py.File(mask_file, "r")["blob"][60]
    problems = damaged("blob", 60, blob ^ 255)
    assert any("stored masks" in problem for problem in problems)
    assert any("digest of the rows" in problem for problem in damaged("coverage", 0, 0.99))
    assert any("not sorted" in problem for problem in damaged("path", 0, b"zzz"))
    assert verify_masks(mask_file).problems == []


def test_verify_compares_with_the_images(folder, mask_file):
    root, _ = folder
    (root / "a/one.jpg").unlink()
    cv2.imwrite(str(root / "a/two.png"), np.zeros((31, 30, 3), np.uint8))
    (root / "b/three.jpg").write_bytes(b"text")
    cv2.imwrite(str(root / "new.png"), np.zeros((3, 3, 3), np.uint8))
    report = verify_masks(mask_file, root)
    gone, resized, unreadable = sorted(report.problems)
    assert (gone, resized) == (
        f"a/one.jpg: its image is gone from {root}",
        "a/two.png: its image is 31 x 30 now, was 30 x 30",
    )
    # more kinds follow where Pillow or pillow-heif reads them
    kinds = "(JPEG, PNG, WEBP, TIFF, BMP, GIF, PPM"
    assert unreadable.startswith(
        f"b/three.jpg: its image cannot be read any more: not an image of a known kind {kinds}"
    )
    assert report.new_images == ["new.png"]

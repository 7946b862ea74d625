"""Masks to import that are crafted, pickled or odd, and names too long to export: reasons and one line."""

import json
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from hapicl.common.errors import UserError
from hapicl.data.images.decode import ImageError
from hapicl.data.masks.writer import pack_mask, write_masks
from hapicl.maskgen.exchange.coco import import_coco
from hapicl.maskgen.exchange.tree import TreeRows, export_tree, read_mask

MASK = np.eye(6, 8, dtype=bool)


class Runs:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def packed(path, **arrays):
    np.savez(path, **arrays)


def flipped(path):
    np.savez_compressed(path, mask=np.random.default_rng(0).integers(0, 255, (60, 80)))
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(byte ^ 255 for byte in data[200:260])
    path.write_bytes(bytes(data))


def bare(path):
    with open(path, "wb") as file:
        np.save(file, MASK)


def member(path, content, name="mask.npy"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)


HUGE = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000), }"
CRAFTED = {
    "pickle": lambda path: path.write_bytes(pickle.dumps(Runs())),
    "empty": lambda path: path.write_bytes(b""),
    "bare array": bare,
    "objects": lambda path: packed(path, mask=np.array([[Runs()]], dtype=object)),
    "texts": lambda path: packed(path, mask=np.array([["a", "b"]])),
    "complex": lambda path: packed(path, mask=np.ones((3, 3), complex)),
    "dates": lambda path: packed(path, mask=np.zeros((3, 3), "M8[s]")),
    "records": lambda path: packed(path, mask=np.zeros((3, 3), "i4,f4")),
    "not a number": lambda path: packed(path, mask=np.full((6, 8), np.nan)),
    "nothing": lambda path: packed(path, mask=np.zeros((0, 5))),
    "three axes": lambda path: packed(path, mask=np.zeros((3, 4, 5))),
    "no array": lambda path: packed(path),
    "two arrays": lambda path: packed(path, a=MASK, b=MASK),
    "text member": lambda path: member(path, b"hello", "mask"),
    "huge": lambda path: member(path, b"\x93NUMPY\x01\x00" + len(HUGE).to_bytes(2, "little") + HUGE),
    "header": lambda path: member(path, b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[["),
    "flipped": flipped,
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_an_odd_npz_is_a_reason(tmp_path, kind, capsys):
    CRAFTED[kind](tmp_path / "x.npz")
    with pytest.raises(ImageError, match=r"x\.jpg: its mask x\.npz: "):
        read_mask(tmp_path / "x.npz", "x.jpg")
    assert "unpickled" not in capsys.readouterr().out


def test_a_name_too_long_for_its_mask_is_told_before_anything_is_written(tmp_path):
    twins = ["a" * 251 + suffix for suffix in (".jpg", ".png")]  # they share a stem, so `.png` is added
    rows = [pack_mask(name, MASK, (60, 80)) for name in ("0.jpg", *twins)]
    write_masks(tmp_path / "m.h5", rows, {"recipe": {}, "image_root": "/images"})
    with pytest.raises(UserError, match=r"\.png is too long a name"):
        list(export_tree(tmp_path / "m.h5", tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()


def test_a_name_of_251_letters_is_exported(tmp_path):
    rows = [pack_mask("a" * 247 + suffix, MASK, (60, 80)) for suffix in (".jpg", ".png")]
    write_masks(tmp_path / "m.h5", rows, {"recipe": {}, "image_root": "/images"})
    assert len(list(export_tree(tmp_path / "m.h5", tmp_path / "tree"))) == 2


def test_a_long_name_without_a_mask_is_a_row(tmp_path):
    assert TreeRows(str(tmp_path)).mask_file("a" * 251 + ".jpg") is None


SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]
SEGMENTS = {
    "number": 3,
    "text": "x",
    "empty ring": [[]],
    "two numbers": [[1, 2]],
    "odd ring": [[*SQUARE, 3]],
    "not a number": [[float("nan")] * 6],
    "huge whole number": [[10**400, *SQUARE[1:]]],
    "far away": [[0, 0, 1e12, 0, 1e12, 1e12]],
    "texts": [["a"] * 6],
    "pairs": [[[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]],
    "no size": {"counts": [1200]},
    "other size": {"counts": [1200], "size": [40, 30]},
    "three sides": {"counts": "0", "size": [30, 40, 3]},
    "huge size": {"counts": [0], "size": [10**9, 10**9]},
    "wrong sum": {"counts": [3, 400_000], "size": [30, 40]},
    "negative count": {"counts": [-5, 1205], "size": [30, 40]},
    "fraction of a pixel": {"counts": [1.5, 1198.5], "size": [30, 40]},
    "no counts": {"counts": None, "size": [30, 40]},
    "garbage": {"counts": "~~~~~~~~", "size": [30, 40]},
    "not ASCII": {"counts": "\0\xff\u20ac", "size": [30, 40]},
}


def coco_file(folder, segment):
    """Annotations of two images of 30 x 40: one with the segment, one with a good one."""
    for name in ("odd", "good"):
        Image.new("RGB", (40, 30)).save(folder / f"{name}.png")
    sizes = {"height": 30, "width": 40}
    images = [
        {"id": number, "file_name": f"{name}.png", **sizes} for number, name in enumerate(("odd", "good"))
    ]
    annotations = [
        {"image_id": 0, "segmentation": segment},
        {"image_id": 1, "segmentation": {"counts": [0, 600, 600], "size": [30, 40]}},
    ]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "coco.json"


@pytest.mark.parametrize("kind", SEGMENTS)
def test_a_bad_segment_costs_its_own_image_only(tmp_path, kind):
    pytest.importorskip("faster_coco_eval.core.mask", reason="needs the extra `eval`")
    summary = import_coco(coco_file(tmp_path, SEGMENTS[kind]), tmp_path, tmp_path / "m.h5")
    assert list(summary.failures) == ["odd.png"]
    assert "a segment " in summary.failures["odd.png"]
    assert summary.counts["ok"] == 1


def test_a_bad_segment_of_the_only_image_was_told_as_an_image_that_is_not_named(tmp_path):
    pytest.importorskip("faster_coco_eval.core.mask", reason="needs the extra `eval`")
    file = coco_file(tmp_path, SEGMENTS["text"])
    (tmp_path / "good.png").unlink()
    with pytest.raises(UserError, match=r"names 1 of the 1 images in .* odd\.png: a segment that is neither"):
        import_coco(file, tmp_path, tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


def test_an_annotation_without_polygons_marks_nothing(tmp_path):
    pytest.importorskip("faster_coco_eval.core.mask", reason="needs the extra `eval`")
    summary = import_coco(coco_file(tmp_path, []), tmp_path, tmp_path / "m.h5")
    assert summary.counts["empty"] == 1
    assert summary.failures == {}

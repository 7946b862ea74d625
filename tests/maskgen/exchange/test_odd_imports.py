"""Masks to import that are crafted, pickled or odd, and names too long to export: reasons and one line."""

import pickle
import zipfile

import numpy as np
import pytest

from hapicl.common.errors import UserError
from hapicl.data.images.decode import ImageError
from hapicl.data.masks.writer import pack_mask, write_masks
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

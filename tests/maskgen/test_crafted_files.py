"""Mask files that no build wrote: whatever stands in one, every command ends well or in one clear line."""

import fuzz_masks
import h5py
import numpy as np
import pytest

from hapicl.data.masks.format import MaskError
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import MaskRow, pack_mask, write_masks

DESCRIPTION = {"recipe": {"name": "test"}, "image_root": "/images"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return fuzz_masks.make_base(tmp_path_factory.mktemp("fuzz"))


def test_the_file_that_cases_are_made_of_is_used_without_complaint(base, tmp_path):
    assert list(fuzz_masks.failures(base, base, tmp_path)) == []


@pytest.mark.parametrize("number", range(16))
def test_crafted_files_end_in_one_line(base, number):
    made, failed = fuzz_masks.run_case(number, 1, base)
    assert failed == [], made


@pytest.fixture
def mask_file(tmp_path):
    mask = np.eye(6, 8, dtype=bool)
    rows = [pack_mask(name, mask, (60, 80), confidence=0.5) for name in ("a.jpg", "b.jpg", "c.jpg")]
    write_masks(tmp_path / "m.h5", [*rows, MaskRow(path="d.jpg", reason="empty")], DESCRIPTION)
    return tmp_path / "m.h5"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("image_size", np.full((4, 2), -1, "<i4")),
        ("mask_size", np.zeros((4, 2), "<u2")),
        ("coverage", np.full(4, np.inf, "<f4")),
        ("confidence", np.full(4, -0.5, "<f4")),
        ("reason_row", np.array([4], "<i8")),
        ("reason_row", np.array([-1], "<i8")),
        ("path", np.array([b"a.jpg", b"b\0jpg", b"c.jpg", b"d.jpg"])),
        ("path", np.array([b"a.jpg", b".", b"c.jpg", b"d.jpg"])),
        ("crc32", np.zeros((4, 1), "<u4")),
        ("offset", np.zeros(5, "<f8")),
        ("blob", np.zeros(3, "<u4")),
        ("status", np.zeros(4, "<u8")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_columns_with_values_that_no_build_writes_are_refused(mask_file, name, values):
    with h5py.File(mask_file, "r+") as file:
        del file[name]
        file.create_dataset(name, data=values)
    with pytest.raises(MaskError, match=r"is damaged|is refused|cannot be read as a mask file"):
        len(MaskReader(mask_file))


def test_a_dataset_of_another_file_is_not_read(mask_file, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(1000))
    for layout in ("external", "link"):
        with h5py.File(mask_file, "r+") as file:
            del file["blob"]
            if layout == "external":
                file.create_dataset("blob", (100,), "|u1", external=[(str(tmp_path / "secret"), 0, 100)])
            else:
                file["blob"] = h5py.ExternalLink("m2.h5", "/blob")
        with pytest.raises(MaskError, match="blob"):
            len(MaskReader(mask_file))


def test_a_dataset_that_would_fill_the_memory_is_refused(mask_file):
    with h5py.File(mask_file, "r+") as file:
        del file["file_bytes"]
        file.create_dataset("file_bytes", (1 << 40,), "<i8", chunks=(64,))
    with pytest.raises(MaskError, match=r"'file_bytes' claims \d+ bytes"):
        len(MaskReader(mask_file))


@pytest.mark.parametrize(
    "description",
    ["[1]", "null", "{", "[" * 100_000, "1" * 5000, "{}", '{"recipe": [], "image_root": "/"}',
     '{"recipe": {}, "image_root": 3}', '{"recipe": {}, "image_root": "a\\u0000b"}',
     '{"recipe": {}, "image_root": "\\ud800"}', '{"recipe": {}, "image_root": "/", "worker_seconds": "x"}'],
)  # fmt: skip
def test_descriptions_of_another_kind_are_refused(mask_file, description):
    with h5py.File(mask_file, "r+") as file:
        file.attrs["description"] = description
    with pytest.raises(MaskError, match="is damaged"):
        len(MaskReader(mask_file))

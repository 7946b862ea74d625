"""The mask file: what goes in comes out, crops are exact, readers cross processes, damage is noticed."""

import multiprocessing
import os
import pickle
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from hapicl.common.errors import UserError
from hapicl.data.geometry import ViewGeometry
from hapicl.data.images.pack import ImagePack
from hapicl.data.images.pack_build import pack_images
from hapicl.data.masks import reader as masks_reader
from hapicl.data.masks.format import MaskError, MaskStatus
from hapicl.data.masks.reader import MaskReader
from hapicl.data.masks.writer import MaskRow, join_masks, pack_mask, write_masks

DESCRIPTION = {"recipe": {"name": "test"}, "image_root": "/images", "complete": True}


def some_rows(count=20, seed=0):
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        height, width = generator.integers(1, 40, 2)
        mask = generator.random((height, width)) < 0.5
        rows.append(
            pack_mask(
                f"class{index % 3}/image{index:03d}.JPEG", mask, (height * 3, width * 3), confidence=0.9
            )
        )
    return rows


@pytest.fixture
def mask_file(tmp_path):
    write_masks(tmp_path / "masks.h5", some_rows(), DESCRIPTION)
    return tmp_path / "masks.h5"


@settings(max_examples=40)
@given(npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_a_packed_mask_comes_back_bit_by_bit(tmp_path_factory, mask):
    out = tmp_path_factory.mktemp("masks") / "masks.h5"
    write_masks(out, [pack_mask("a.png", mask, (100, 50))], DESCRIPTION)
    reader = MaskReader(out)
    assert reader["a.png"].dtype == bool
    np.testing.assert_array_equal(reader["a.png"], mask)
    assert reader.image_size("a.png") == (100, 50)
    assert reader.coverage("a.png") == pytest.approx(mask.mean())


@settings(max_examples=40)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12), unique=True, min_size=1
    )
)
def test_any_names_are_found_again_in_byte_order(tmp_path_factory, names):
    names = [name for name in names if name != ".."] or ["x"]
    names = [
        name for name in names if name.encode("utf-8", "surrogatepass").decode("utf-8", "replace") == name
    ] or ["x"]
    out = tmp_path_factory.mktemp("masks") / "masks.h5"
    write_masks(out, [pack_mask(name, np.eye(3, dtype=bool), (3, 3)) for name in names], DESCRIPTION)
    reader = MaskReader(out)
    assert list(reader.paths) == sorted(names, key=str.encode)
    assert all(name in reader for name in names)
    assert len(reader) == len(names)


def test_names_that_are_not_utf8_survive(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_masks(tmp_path / "masks.h5", [pack_mask(name, np.eye(3, dtype=bool), (3, 3))], DESCRIPTION)
    assert MaskReader(tmp_path / "masks.h5").paths[0] == name


def test_status_follows_coverage_and_confidence():
    def status(mask, confidence=0.9):
        return pack_mask("a", mask, (4, 4), confidence=confidence, low_confidence=0.5).status

    half = np.eye(4, dtype=bool)
    assert status(half) is MaskStatus.OK
    assert status(half, 0.4) is MaskStatus.LOW_CONFIDENCE
    assert status(half, float("nan")) is MaskStatus.OK
    assert status(np.zeros((4, 4), bool), 0.1) is MaskStatus.EMPTY
    assert status(np.ones((4, 4), bool), 0.1) is MaskStatus.FULL


def test_an_unreadable_row_says_why(tmp_path):
    rows = [*some_rows(3), MaskRow(path="broken.jpg", reason="truncated")]
    write_masks(tmp_path / "masks.h5", rows, DESCRIPTION)
    reader = MaskReader(tmp_path / "masks.h5")
    assert reader.status("broken.jpg") is MaskStatus.UNREADABLE
    assert reader.reasons() == {"broken.jpg": "truncated"}
    with pytest.raises(MaskError, match=r"broken.jpg has no mask: truncated"):
        reader["broken.jpg"]


def area_average(mask, image_size, geometry, size):
    """The plain reference: every mask pixel's overlap with every cell, one by one."""
    scale_y, scale_x = mask.shape[0] / image_size[0], mask.shape[1] / image_size[1]
    cells = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            top = (geometry.top + row * geometry.height / size) * scale_y
            bottom = (geometry.top + (row + 1) * geometry.height / size) * scale_y
            left = (geometry.left + column * geometry.width / size) * scale_x
            right = (geometry.left + (column + 1) * geometry.width / size) * scale_x
            total = sum(
                max(0.0, min(bottom, y + 1) - max(top, y)) * max(0.0, min(right, x + 1) - max(left, x))
                for y, x in zip(*np.nonzero(mask), strict=True)
            )
            cells[row, column] = total / ((bottom - top) * (right - left))
    return cells[:: -1 if geometry.vflip else 1, :: -1 if geometry.hflip else 1]


@settings(max_examples=40)
@given(st.data())
def test_a_crop_is_the_exact_area_average(tmp_path_factory, data):
    mask = data.draw(npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=9)))
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    geometry = ViewGeometry(
        top,
        left,
        data.draw(st.integers(1, height - top)),
        data.draw(st.integers(1, width - left)),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
    )
    size = data.draw(st.integers(1, 5))
    out = tmp_path_factory.mktemp("masks") / "masks.h5"
    write_masks(out, [pack_mask("a.png", mask, (height, width))], DESCRIPTION)
    reader = MaskReader(out)
    cells = reader.crop("a.png", geometry, size)
    assert cells.dtype == np.float32
    np.testing.assert_allclose(cells, area_average(mask, (height, width), geometry, size), atol=1e-6)
    assert reader.integral("a.png").fraction(geometry) == pytest.approx(cells.mean(), abs=1e-6)


def test_a_view_outside_the_recorded_image_is_refused(mask_file):
    reader = MaskReader(mask_file)
    path = reader.paths[0]
    height, width = reader.image_size(path)
    for geometry in (
        ViewGeometry(-1, 0, height, width, False),
        ViewGeometry(1, 0, height, width, False),
        ViewGeometry(0, 0, height, width + 1, False),
    ):
        with pytest.raises(MaskError, match="outside the recorded image"):
            reader.crop(path, geometry, 7)


def test_an_image_of_another_size_is_refused(mask_file):
    reader = MaskReader(mask_file)
    path = reader.paths[0]
    height, width = reader.image_size(path)
    reader.integral(path, (height, width))
    with pytest.raises(MaskError, match="--update"):
        reader.integral(path, (width + 1, height))


def test_files_that_are_whole_were_advised_to_be_deleted(mask_file, tmp_path):
    """A folder, another kind of file, or one that is open elsewhere is no damage."""
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(mask_file, "r", locking=True):
        with pytest.raises(MaskError, match="it is open already") as told:
            len(MaskReader(mask_file))
        assert "delete" not in str(told.value)
    for path in (tmp_path, tmp_path / "text.h5"):
        with pytest.raises(MaskError) as told:
            len(MaskReader(path))
        assert "delete" not in str(told.value)
    (tmp_path / "cut.h5").write_bytes(mask_file.read_bytes()[:3000])
    with pytest.raises(MaskError, match=r"truncated.*delete this one and run `hapicl masks build` again"):
        len(MaskReader(tmp_path / "cut.h5"))


def test_unknown_paths_missing_files_and_foreign_files_are_named(mask_file, tmp_path):
    with pytest.raises(MaskError, match=r"no mask for 'nothing.jpg'"):
        MaskReader(mask_file)["nothing.jpg"]
    assert "x" * 1000 not in MaskReader(mask_file)
    with pytest.raises(MaskError, match="no mask file"):
        len(MaskReader(tmp_path / "none.h5"))
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(MaskError, match="cannot be read as a mask file"):
        len(MaskReader(tmp_path / "text.h5"))
    with pytest.raises(MaskError, match="it is a folder; give the file that `hapicl masks build` wrote"):
        len(MaskReader(tmp_path))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = 1
    with pytest.raises(MaskError, match="no mask file of"):
        len(MaskReader(tmp_path / "other.h5"))


@pytest.mark.parametrize("key", ["../outside.png", "/etc/passwd", "a/../../b.png", "", "a\0b"])
def test_keys_that_leave_the_folder_are_refused(tmp_path, key):
    with pytest.raises(UserError, match="no path below"):
        write_masks(tmp_path / "masks.h5", [MaskRow(path=key, reason="x")], DESCRIPTION)


@pytest.mark.parametrize("key", [b"../outside.png", b"/etc/passwd", b"a/../../b.png"])
def test_a_file_with_keys_that_leave_the_folder_is_refused(mask_file, key):
    with h5py.File(mask_file, "r+") as file:
        file["path"][0] = key
    with pytest.raises(MaskError, match="leads outside"):
        len(MaskReader(mask_file))


def test_dots_inside_names_are_no_traversal(tmp_path):
    write_masks(tmp_path / "masks.h5", [MaskRow(path="a..b/c...jpg", reason="x")], DESCRIPTION)
    assert list(MaskReader(tmp_path / "masks.h5").paths) == ["a..b/c...jpg"]


def test_damaged_columns_and_masks_are_noticed(mask_file, tmp_path):
    path = MaskReader(mask_file).paths[0]
    shutil.copy(mask_file, tmp_path / "blob.h5")
    with h5py.File(tmp_path / "blob.h5", "r+") as file:
        file["blob"][:4] = 255
    with pytest.raises(MaskError, match="is damaged at"):
        MaskReader(tmp_path / "blob.h5")[path]
    with h5py.File(mask_file, "r+") as file:
        file["offset"][-1] += 1
    with pytest.raises(MaskError, match="offsets do not fit"):
        len(MaskReader(mask_file))


@pytest.mark.parametrize("held", ["masks", "a pack"])
def test_a_file_cut_short_while_it_is_read_is_an_error_and_no_bus_error(
    mask_file, flat_folder, tmp_path, held
):
    """Reading beyond the end of a mapped file would end the process."""
    if held == "masks":
        reader = MaskReader(mask_file)
        file, path, read = mask_file, reader.paths[0], reader.__getitem__
    else:
        file = tmp_path / "images.h5"
        pack_images(flat_folder, file, workers=1)
        pack = ImagePack(file)
        path, read = pack.paths()[0], pack.read
    read(path)
    os.truncate(file, 0)
    with pytest.raises(UserError, match=r"h5 was changed while it was in use.*--resume auto"):
        read(path)


def test_a_file_cut_short_while_it_is_verified_is_an_error_and_no_bus_error(mask_file, monkeypatch):
    """Only its opening was watched: the digest of a large file is read for minutes."""
    monkeypatch.setattr(masks_reader, "PIECE_BYTES", 50)
    pieces = MaskReader(mask_file).blob_pieces()
    assert len(next(pieces)) == 50
    os.truncate(mask_file, 0)
    with pytest.raises(MaskError, match="was changed while it was in use"):
        next(pieces)


def test_pieces_are_the_whole(mask_file, monkeypatch):
    monkeypatch.setattr(masks_reader, "PIECE_BYTES", 7)
    reader = MaskReader(mask_file)
    np.testing.assert_array_equal(np.concatenate(list(reader.blob_pieces())), reader.column("blob"))
    some = np.concatenate(list(reader.blob_pieces(3, 31)))
    np.testing.assert_array_equal(some, reader.column("blob")[3:31])


def test_a_file_written_over_in_place_while_it_is_read_is_noticed(mask_file):
    reader = MaskReader(mask_file)
    row = reader.row(reader.paths[0])
    whole = mask_file.read_bytes()
    mask_file.write_bytes(whole[:-1] + b"x")
    os.utime(mask_file, ns=(0, mask_file.stat().st_mtime_ns + 1))  # clocks of disks are coarse
    with pytest.raises(MaskError, match="was changed while it was in use"):
        reader.packed(row)


def test_a_file_replaced_while_it_is_read_goes_on_showing_the_old_one(mask_file, tmp_path):
    reader = MaskReader(mask_file)
    masks = {path: reader[path] for path in reader.paths}
    write_masks(mask_file, [], DESCRIPTION)
    for path, mask in masks.items():
        np.testing.assert_array_equal(reader[path], mask)
    with pytest.raises(MaskError, match="was replaced while it was in use"):
        len(pickle.loads(pickle.dumps(reader)))  # as a new worker would open it
    assert reader.content_digest != MaskReader(mask_file).content_digest


def test_a_mask_that_does_not_fit_its_checksum_is_refused(mask_file):
    path = MaskReader(mask_file).paths[0]
    with h5py.File(mask_file, "r+") as file:
        file["crc32"][0] ^= 1
    with pytest.raises(MaskError, match=r"is damaged at .*crc32 does not match"):
        MaskReader(mask_file)[path]


def test_a_repacked_file_reads_the_same(mask_file, tmp_path):
    reader = MaskReader(mask_file)
    with h5py.File(mask_file, "r") as source, h5py.File(tmp_path / "packed.h5", "w") as target:
        for name, values in source.items():
            target.create_dataset(name, data=values[...], chunks=True, compression="gzip")
        target.attrs.update(source.attrs)
    repacked = MaskReader(tmp_path / "packed.h5")
    for path in reader.paths:
        np.testing.assert_array_equal(repacked[path], reader[path])


def test_joining_parts_equals_writing_at_once(tmp_path):
    rows = [
        *some_rows(30),
        MaskRow(path="class1/zz.png", reason="no image"),
        MaskRow(path="a.png", reason="empty"),
    ]
    write_masks(tmp_path / "whole.h5", rows, DESCRIPTION)
    for part in range(4):
        write_masks(tmp_path / f"part{part}.h5", rows[part::4], DESCRIPTION)
    sources = [MaskReader(tmp_path / f"part{part}.h5") for part in (2, 0, 3, 1)]
    assert join_masks(tmp_path / "joined.h5", sources, DESCRIPTION) == len(rows)
    assert (tmp_path / "joined.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_joining_keeps_chosen_rows_takes_equal_ones_once_and_refuses_others(tmp_path):
    rows = some_rows(10)
    write_masks(tmp_path / "one.h5", rows[:6], DESCRIPTION)
    write_masks(tmp_path / "two.h5", rows[4:], DESCRIPTION)
    one, two = MaskReader(tmp_path / "one.h5"), MaskReader(tmp_path / "two.h5")
    assert join_masks(tmp_path / "joined.h5", [one, two], DESCRIPTION) == 10
    keep = [np.arange(6) < 4, np.zeros(6, bool)]
    assert join_masks(tmp_path / "few.h5", [one, two], DESCRIPTION, keep=keep) == 4
    write_masks(tmp_path / "other.h5", [pack_mask(rows[0].path, np.eye(5, dtype=bool), (5, 5))], DESCRIPTION)
    with pytest.raises(UserError, match="disagree"):
        join_masks(tmp_path / "joined.h5", [one, MaskReader(tmp_path / "other.h5")], DESCRIPTION)


def test_a_path_given_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="two masks for"):
        write_masks(tmp_path / "masks.h5", [*some_rows(2), *some_rows(1)], DESCRIPTION)
    assert not (tmp_path / "masks.h5").exists()


def test_an_empty_file_has_no_paths(tmp_path):
    write_masks(tmp_path / "masks.h5", [], DESCRIPTION)
    assert list(MaskReader(tmp_path / "masks.h5").paths) == []
    assert "a" not in MaskReader(tmp_path / "masks.h5")


def test_a_replaced_file_is_noticed_by_a_pickled_reader(mask_file):
    reader = MaskReader(mask_file)
    assert len(reader) == 20
    carried = pickle.dumps(reader)
    assert len(carried) < 1000
    assert len(pickle.loads(carried)) == 20
    write_masks(mask_file, some_rows(5), DESCRIPTION)
    with pytest.raises(MaskError, match="replaced"):
        len(pickle.loads(carried))
    assert len(reader) == 20  # the open reader keeps the old file


def digest_of_all(reader):
    return sum(int(reader[path].sum()) for path in reader.paths)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_eight_processes_read_at_once(mask_file, method):
    reader = MaskReader(mask_file)
    expected = digest_of_all(reader)
    with multiprocessing.get_context(method).Pool(8) as pool:
        assert pool.map(digest_of_all, [reader] * 16) == [expected] * 16


def test_a_failed_write_leaves_the_old_file(mask_file):
    before = mask_file.read_bytes()
    with pytest.raises(TypeError):
        write_masks(mask_file, some_rows(3), {"recipe": object(), "image_root": "/"})
    assert mask_file.read_bytes() == before
    assert [path.name for path in mask_file.parent.iterdir()] == ["masks.h5"]

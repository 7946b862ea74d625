import pytest

from hapicl.common.atomic_files import atomic_write
from hapicl.common.errors import UserError


def write(path):
    with atomic_write(path) as part:
        part.write_text("new")


def test_a_file_is_put_in_place_with_its_folders(tmp_path):
    write(tmp_path / "a" / "b.txt")
    assert (tmp_path / "a" / "b.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    def fail():
        with atomic_write(tmp_path / "b.txt") as part:
            part.write_text("half")
            raise KeyError

    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(KeyError):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("b.txt", "old")]


def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/b.txt: a folder on the way is a file; choose another place"):
        write(tmp_path / "file" / "b.txt")
    with pytest.raises(UserError, match="it is a folder; give the name of a file"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

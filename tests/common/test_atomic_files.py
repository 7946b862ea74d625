import os
import subprocess
import time

import pytest

from hapicl.common.atomic_files import (
    FOREIGN_SECONDS,
    atomic_write,
    is_part,
    part_path,
    remove_leftovers,
)
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


def leave_part(folder, host, process, *, age=0.0):
    path = folder / f".last.pt.{host}.{process}.part"
    path.write_text("half")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_dead_process_left_is_removed_at_the_next_start(tmp_path):
    host = part_path(tmp_path / "last.pt").name.split(".")[-3]
    dead = leave_part(tmp_path, host, dead_process())
    alive = leave_part(tmp_path, host, os.getppid())
    reused = leave_part(tmp_path, host, os.getpid(), age=1e7)  # the number has gone to a younger process
    write(tmp_path / "b.txt")
    assert [path.exists() for path in (dead, alive, reused)] == [False, True, False]


def test_what_another_machine_is_writing_on_a_shared_disk_is_left_alone(tmp_path):
    living = leave_part(tmp_path, "other-node", dead_process(), age=3600)
    old = leave_part(tmp_path, "other-node", 1, age=2 * FOREIGN_SECONDS)
    mine = tmp_path / "notes.part"
    mine.write_text("a user's own file")
    remove_leftovers(tmp_path)
    assert [path.exists() for path in (living, old, mine)] == [True, False, True]


def test_the_longest_names_that_a_disk_takes_can_be_written(tmp_path):
    """The part's longer name was refused by the disk where the file's own was not."""
    names = ["x" * 255, "x" * 254 + "y", "ä" * 127]
    parts = {part_path(tmp_path / name).name for name in names}
    assert len(parts) == 3
    assert all(is_part(name) for name in parts)
    for name in names:
        write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)

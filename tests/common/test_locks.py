"""A lock is held by one process, names it, and is gone with it."""

import errno
import fcntl
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from hapicl.common import locks
from hapicl.common.errors import UserError
from hapicl.common.locks import hold, hold_file, hold_folder
from hapicl.common.system import file_locks

HOLDER = """
import os, sys, time
from pathlib import Path
from hapicl.common.locks import hold_folder
with hold_folder(Path(sys.argv[1]), advice="wait"):
    if sys.argv[2] == "fork" and os.fork() == 0:
        print(os.getpid(), flush=True)
    elif sys.argv[2] != "fork":
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def start_holder(folder, kind="plain"):
    """A process that holds the folder; gives it and the number it prints (its own, or its child's)."""
    command = [sys.executable, "-c", HOLDER, str(folder), kind]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    with process.stdout:
        return process, int(process.stdout.readline())


def test_a_second_process_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path):
    process, number = start_holder(tmp_path / "run")
    try:
        with (
            pytest.raises(UserError, match=rf"run is in use by process {number} on .* since .*; wait a bit$"),
            hold_folder(tmp_path / "run", advice="wait a bit"),
        ):
            pytest.fail("two processes hold one folder")
    finally:
        process.kill()
        process.wait()
    with hold_folder(tmp_path / "run", advice="wait a bit"):
        text = (tmp_path / "run" / locks.LOCK).read_text()
        assert text.startswith(f"process {os.getpid()} on {socket.gethostname()} since ")
    assert list((tmp_path / "run").iterdir()) == []  # made by the killed one, so it is not ours to remove


def test_children_of_a_killed_process_do_not_hold_its_lock(tmp_path):
    """A loader worker outlives its trainer by seconds, in which the run could not be resumed."""
    process, child = start_holder(tmp_path / "run", "fork")
    try:
        process.kill()
        process.wait()
        with hold_folder(tmp_path / "run", advice="wait"):
            os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_leaves_nothing_behind(tmp_path):
    with hold_folder(tmp_path / "a" / "run", advice="wait"):
        assert (tmp_path / "a" / "run" / locks.LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with hold_file(tmp_path / "b" / "result.json", advice="wait"):
        (tmp_path / "b" / "result.json").write_text("{}")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["result.json"]


def test_locks_are_shared_by_those_who_share_and_by_nobody_else(tmp_path):
    path = tmp_path / "lock"
    with hold(path, "it", advice="wait", shared=True):
        with hold(path, "it", advice="wait", shared=True):
            pass
        assert path.exists()  # the first still holds it
        with (
            pytest.raises(UserError, match="it is in use by another process; wait"),
            hold(path, "it", advice="wait"),
        ):
            pytest.fail("held alone and shared at once")
    assert not path.exists()
    with (
        hold(path, "it", advice="wait"),
        pytest.raises(UserError, match=f"process {os.getpid()}"),
        hold(path, "it", advice="wait", shared=True),
    ):
        pytest.fail("held alone and shared at once")


def test_a_lock_taken_on_a_file_that_its_holder_has_just_deleted_is_taken_again(tmp_path, monkeypatch):
    path, real, deleted = tmp_path / "lock", fcntl.flock, []

    def flock(descriptor, kind):
        real(descriptor, kind)
        if not deleted:  # the holder before us leaves between our opening and our locking
            deleted.append(path.unlink())

    monkeypatch.setattr(file_locks.fcntl, "flock", flock)
    with hold(path, "it", advice="wait"):
        assert path.exists()
        with pytest.raises(UserError, match="in use"), hold(path, "it", advice="wait"):
            pytest.fail("two hold it")


def test_a_disk_without_locks_is_named_and_used(tmp_path, monkeypatch, caplog):
    def flock(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(file_locks.fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), hold_folder(tmp_path, advice="wait"):
        assert "has no locks (No locks available): nothing keeps a second process" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_with_the_place(tmp_path, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.os, "write", write)
    with (
        pytest.raises(UserError, match=r"cannot work in .*run: No space left on device; free some space"),
        hold_folder(tmp_path / "run", advice="wait"),
    ):
        pytest.fail("held")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_may_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot work in .*file/run: Not a directory; choose a place"),
        hold_folder(pathlib.Path(tmp_path / "file" / "run"), advice="wait"),
    ):
        pytest.fail("held inside a file")

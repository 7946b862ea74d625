"""Locks without `fcntl`: Windows's locked bytes, played by a table, and a system without any."""

import os
import types

import pytest

from hapicl.common.errors import UserError
from hapicl.common.locks import LOCK, hold, hold_folder
from hapicl.common.system import file_locks


class Windows:
    """`msvcrt.locking` as Windows documents it: bytes from the position on, refused where one is held."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self):
        self.held = []  # (file, descriptor, first byte, one past the last)

    def locking(self, descriptor, mode, length):
        file, first = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        mine = (file, descriptor, first, first + length)
        if mode == self.LK_UNLCK:
            self.held.remove(mine)
        elif any(file == other and first < end and begin < mine[3] for other, _, begin, end in self.held):
            raise PermissionError(13, "Permission denied")
        else:
            self.held.append(mine)


@pytest.fixture
def windows(monkeypatch):
    played = Windows()
    monkeypatch.setattr(file_locks, "fcntl", None)
    monkeypatch.setattr(file_locks, "msvcrt", played)
    return played


def test_a_second_one_is_told_who_holds_it_and_nothing_stays(tmp_path, windows):
    with hold_folder(tmp_path / "run", advice="wait"):
        assert (tmp_path / "run" / LOCK).exists()
        with (
            pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .*; wait$"),
            hold_folder(tmp_path / "run", advice="wait"),
        ):
            pytest.fail("held twice")
    assert windows.held == []
    assert list(tmp_path.iterdir()) == []


def test_those_that_share_hold_it_together_and_the_last_removes_it(tmp_path, windows):
    path = tmp_path / "lock"
    with hold(path, "it", advice="wait", shared=True):
        with hold(path, "it", advice="wait", shared=True):
            assert len(windows.held) == 2
            with pytest.raises(UserError, match="in use"), hold(path, "it", advice="wait"):
                pytest.fail("alone beside others")
        assert path.exists()
    assert not path.exists()
    assert windows.held == []


def test_a_lock_file_that_another_process_has_opened_meanwhile_stays(tmp_path, windows, monkeypatch):
    path = tmp_path / "lock"

    def refuse(file, missing_ok=False):
        raise PermissionError(13, "used by another process")

    with hold(path, "it", advice="wait"):
        monkeypatch.setattr(type(path), "unlink", refuse)
    assert path.exists()


def test_a_system_without_locks_warns_and_goes_on(tmp_path, monkeypatch, caplog):
    for module in ("fcntl", "msvcrt"):
        monkeypatch.setattr(file_locks, module, None)
    done = []
    with hold(tmp_path / "lock", "it", advice="wait"):
        done.append(True)
    assert done == [True]
    assert "no locks on this system" in caplog.text


def test_the_played_windows_refuses_overlapping_ranges(tmp_path, windows):
    with (
        open(tmp_path / "file", "wb+", buffering=0) as first,
        open(tmp_path / "file", "rb+", buffering=0) as second,
    ):
        windows.locking(first.fileno(), windows.LK_NBLCK, 4)
        os.lseek(second.fileno(), 3, os.SEEK_SET)
        with pytest.raises(PermissionError):
            windows.locking(second.fileno(), windows.LK_NBLCK, 1)
        os.lseek(second.fileno(), 4, os.SEEK_SET)
        windows.locking(second.fileno(), windows.LK_NBLCK, 1)


def test_fcntl_is_used_where_it_is():
    assert isinstance(file_locks.fcntl, types.ModuleType)
    assert file_locks.can_remove_open_files()

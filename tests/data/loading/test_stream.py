"""What the workers of the loader say."""

import os

import pytest

from hapicl.data.loading import worker_process


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), EOFError()])
def test_a_worker_whose_trainer_was_killed_printed_a_traceback(error, monkeypatch, capsys):
    """It was just sending a chunk."""
    monkeypatch.setattr(worker_process, "LOST_SECONDS", 0)
    worker_process._tell_unless_orphaned(os.getppid() + 1, type(error), error, None)
    assert capsys.readouterr().err == ""
    worker_process._tell_unless_orphaned(os.getppid(), type(error), error, None)  # the trainer is there
    assert type(error).__name__ in capsys.readouterr().err


def test_another_error_of_a_worker_is_told(capsys):
    worker_process._tell_unless_orphaned(os.getppid() + 1, KeyError, KeyError("bug"), None)
    assert "KeyError: 'bug'" in capsys.readouterr().err

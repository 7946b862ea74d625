import errno

import pytest

from hapicl import cli


def _ends(monkeypatch, capsys, error):
    def command(**_):
        raise error

    monkeypatch.setattr(cli.command_line, "main", command)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr().err


def test_what_the_system_says_of_a_file_is_one_line(monkeypatch, capsys):
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "runs/first/metrics.jsonl")
    code, said = _ends(monkeypatch, capsys, error)
    assert code == 2
    assert said.startswith("error: runs/first/metrics.jsonl: No such file or directory;")
    assert said.count("\n") == 1


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    code, said = _ends(monkeypatch, capsys, OSError(errno.ENOSPC, "No space left on device"))
    assert code == 2
    assert said.startswith("error: No space left on device;")


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), KeyError("bug")])
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    def command(**_):
        raise error

    monkeypatch.setattr(cli.command_line, "main", command)
    with pytest.raises(type(error)):
        cli.main()

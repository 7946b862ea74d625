import errno
import subprocess
import sys

import pytest
from click.testing import CliRunner

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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: tried to allocate 17 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_widths_that_fit_no_memory_are_one_line(monkeypatch, capsys, error):
    code, said = _ends(monkeypatch, capsys, error)
    assert code == 2
    assert said.startswith("error: not enough memory: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes do not fit"), ConnectionResetError(errno.ECONNRESET, "reset"), KeyError("bug")],
)
def test_a_bug_keeps_its_traceback(monkeypatch, error):
    def command(**_):
        raise error

    monkeypatch.setattr(cli.command_line, "main", command)
    with pytest.raises(type(error)):
        cli.main()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["pretran"], "no such command 'pretran'; did you mean pretrain?"),
        (["xyzzy"], "no such command 'xyzzy'; see hapicl --help"),
        (
            ["pretrain", "--images", ".", "--method", "simclrr"],
            "'simclrr'; did you mean simclr?",
        ),
        (["pretrain", "--images", ".", "--recipe", "simclr_smal"], "did you mean simclr_small?"),
    ],
)
def test_a_mistyped_name_is_told_the_nearest(words, hint):
    result = CliRunner().invoke(cli.command_line, words, prog_name="hapicl")
    assert hint in (result.output if result.exit_code == 2 else str(result.exception))


@pytest.mark.parametrize(
    ("words", "begun", "found"),
    [
        (["pretrain", "--method"], "hapicl_", ["hapicl_m", "hapicl_s", "hapicl_vit"]),
        (["pretrain", "--recipe"], "mae_s", ["mae_small"]),
        (["doctor", "--method"], "dense", ["densecl"]),
    ],
)
def test_shells_complete_names_without_torch(words, begun, found):
    program = (
        "import sys; from click.shell_completion import ShellComplete; from hapicl.cli import command_line\n"
        f"items = ShellComplete(command_line, {{}}, 'hapicl', '_').get_completions({words!r}, {begun!r})\n"
        "print([item.value for item in items], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{found} False"

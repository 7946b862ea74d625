import errno
import importlib
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hapicl import cli
from hapicl.common.errors import UserError
from hapicl.evaluate.export.commands import EXPORT_TARGETS
from hapicl.evaluate.export.export import TARGETS
from hapicl.evaluate.options import PROTOCOL_NAMES
from hapicl.models.backbones.names import USUAL_VITS
from hapicl.models.backbones.vit import known_vits


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


def test_what_a_training_has_saved_is_the_last_line(monkeypatch, capsys):
    error = UserError("a mask does not fit its image")
    error.add_note("runs/first/last.pt holds step 5 of 10")
    code, said = _ends(monkeypatch, capsys, error)
    assert code == 2
    assert said == "error: a mask does not fit its image\nruns/first/last.pt holds step 5 of 10\n"


def test_a_lost_process_of_several_was_a_traceback(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    where = "[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:47: Connection reset by peer"
    error = RuntimeError(f"{where}. This is typically caused by a remote worker hanging.")
    code, said = _ends(monkeypatch, capsys, error)
    assert code == 2
    assert said == f"error: another process of this run is gone, which may say why: {where}\n"


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
        (["pretrain", "--arch"], "vit_s", ["vit_small_patch16_224"]),
        (["evaluate", "knn", "--arch"], "resnet1", ["resnet101", "resnet152", "resnet18"]),
        (["evaluate", "segment", "--protocol"], "seg-m", ["seg-moco-fcn16"]),
        (["compare", "segment", "--protocol"], "seg-m", ["seg-moco-fcn16"]),
        (["evaluate", "detect", "--protocol"], "", sorted(PROTOCOL_NAMES["detect"])),
        (["export", "--to"], "t", ["timm", "torchvision"]),
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


def test_names_that_shells_complete_are_those_of_the_code():
    for task, names in PROTOCOL_NAMES.items():
        room = {"segment": "segmentation.protocols", "detect": "detection.protocols"}
        module = importlib.import_module(f"hapicl.evaluate.{room.get(task, f'classification.{task}')}")
        assert set(names) == set(module.PROTOCOLS), task
    assert EXPORT_TARGETS == TARGETS
    assert set(USUAL_VITS) <= set(known_vits())


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["pretrain", "--images", ".", "--arch", "resnet51"], "did you mean resnet50?"),
        (["pretrain", "--images", ".", "--arch", "vit_tny_patch16_224"], "vit_tiny_patch16_224?"),
        (["export", "w.pth", "--to", "detectron"], "did you mean detectron2?"),
    ],
)
def test_mistyped_backbones_and_targets_are_told_the_nearest(words, hint):
    assert hint in str(CliRunner().invoke(cli.command_line, words).exception)

"""The demo from end to end, in miniature, and what it does with a folder that is already there."""

import re
import types

import pytest
import safetensors.torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from hapicl.common.errors import UserError
from hapicl.common.terminal import progress
from hapicl.demo import run, stages
from hapicl.demo.commands import demo
from hapicl.demo.run import MARKER, Size, Timeline, prepare, run_demo

TINY = Size(per_class=1, unseen=1, steps=2, batch_size=4, image_size=64, probe_steps=2)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(run, "SMALL", TINY)


@pytest.mark.slow
def test_the_demo_runs_twice_in_a_folder_with_a_space(tiny, tmp_path):
    out = tmp_path / "demo output"
    for _ in range(2):
        console = Console(record=True, width=120, quiet=True)
        report = run_demo(out, small=True, console=console)
    assert sorted(path.name for path in out.iterdir()) == sorted({*run.MADE, MARKER} - {"masks.h5.parts"})
    with Image.open(out / "gallery.png") as gallery:
        assert gallery.width > 1000
    text = report.read_text(encoding="utf-8")
    for heading in (
        "What was made",
        "Before and after",
        "Gallery",
        "Loss curves",
        "Settings",
        "Next: your own images",
        "Pictures",
    ):
        assert f">{heading}</h2>" in text
    assert (text.count("<img "), text.count("<svg ")) == (2 + 6, 3)
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "vultilion" in text
    weights = safetensors.torch.load_file(out / "run" / "backbone.safetensors")
    left = torchvision.models.resnet18().load_state_dict(weights, strict=False)
    assert set(left.missing_keys) == {"fc.weight", "fc.bias"}
    assert left.unexpected_keys == []


def test_the_demo_in_a_pipe_showed_only_its_parts(tmp_path, monkeypatch, capsys):
    def build(images, out, progress):
        out.write_bytes(b"masks")
        for done in (0, 5, 12):
            progress(done, 12, 0)
        return types.SimpleNamespace(images=12, failures={})

    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    monkeypatch.setattr(stages, "build_masks", build)
    found = stages.find_masks(types.SimpleNamespace(images=tmp_path), tmp_path / "masks.h5")
    assert found == (12, 5)
    assert [line[:20] for line in capsys.readouterr().err.splitlines()] == [
        "masks: 5 of 12 (42 %",
        "masks: 12 of 12 (100",
    ]


def test_a_folder_of_the_users_own_is_refused_and_left_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"precious")
    result = CliRunner().invoke(demo, ["--out", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "choose another --out" in str(result.exception)
    assert (tmp_path / "images" / "holiday.jpg").read_bytes() == b"precious"


def test_a_file_is_refused(tmp_path):
    path = tmp_path / "taken"
    path.write_text("x")
    with pytest.raises(UserError, match="taken is a file"):
        prepare(path, small=False)
    with pytest.raises(UserError, match="taken/below"):
        prepare(path / "below", small=False)


def test_only_what_the_demo_made_is_removed(tmp_path):
    prepare(tmp_path, small=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_text("x")
    (tmp_path / "masks.h5").write_text("x")
    (tmp_path / "notes.txt").write_text("mine")
    prepare(tmp_path, small=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARKER, "notes.txt"]


def test_the_table_adds_up():
    timeline = Timeline(Console(quiet=True), [("one", "x", 1.25), ("two", "y", 2.25)])
    console = Console(record=True, width=80, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(timeline.table())
    text = console.export_text()
    console.file.close()
    assert "3.5" in text
    assert text.index("one") < text.index("two")

"""The commands end to end on tiny data, with weights of a torchvision model."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from click.testing import CliRunner, Result

from hapicl.cli import command_line
from hapicl.common.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command_line, [str(argument) for argument in arguments])


def test_knn_of_torchvision_weights_end_to_end(weights: Path, colour_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "knn.json"
    folders = ["--train", colour_folders / "train", "--test", colour_folders / "test"]
    answer = call("evaluate", "knn", weights, *folders, "--image-size", 32, "--set", "k=5", "--out", out)
    assert answer.exit_code == 0, answer.output
    assert "100 of 100 keys of resnet18" in answer.output
    assert "top1 100.00 %" in answer.output
    result = json.loads(out.read_text())
    assert (result["protocol"], result["parameters"]["k"], result["parameters"]["resize"]) == (
        "knn-dino",
        5,
        37,
    )
    assert result["mean"]["top1"] == 1.0
    assert (tmp_path / "knn.html").read_text().startswith("<!")


def test_segment_of_supervised_weights_with_two_runs(weights: Path, halves: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.json"
    answer = call(
        *("evaluate", "segment", f"supervised:{weights}", "--stem", "stride1", "--runs", 2),
        *("--images", halves / "images", "--labels", halves / "labels", "--void", 9),
        *("--image-size", 64, "--set", "steps=40", "--set", "batch_size=4", "--out", out),
    )
    assert answer.exit_code == 0, answer.output
    result = json.loads(out.read_text())
    assert result["weights"]["kind"] == "supervised"
    assert len(result["runs"]) == 2
    assert result["std"]["miou"] is not None
    assert result["mean"]["miou"] > 0.85
    assert "data:image/jpeg" in (tmp_path / "seg.html").read_text()
    assert not list(tmp_path.rglob("*.pt"))
    table = call("evaluate", "table", out)
    assert "supervised resnet18" in table.output
    html = call("evaluate", "table", out, "--format", "html", "--out", tmp_path / "t.html")
    assert html.exit_code == 0, html.output
    assert "<svg " in (tmp_path / "t.html").read_text()


def test_detect_end_to_end(weights: Path, squares: Path, tmp_path: Path) -> None:
    small = ("shape.channels=16", "shape.hidden=16", "shape.regions=8", "steps=2", "batch_size=4")
    changes = [word for change in small for word in ("--set", change)]
    answer = call(
        *("evaluate", "detect", weights, "--voc", squares, "--split", "train", "--test-split", "test"),
        *("--image-size", 64, "--keep-checkpoints", "--out", tmp_path / "d.json", *changes),
    )
    assert answer.exit_code == 0, answer.output
    result = json.loads((tmp_path / "d.json").read_text())
    assert result["headline"] == "ap50"
    assert set(result["mean"]) == {"ap", "ap50", "ap75", "voc_ap", "voc_ap50", "voc_ap75"}
    assert (tmp_path / "d.runs/seed0/last.pt").exists()


@pytest.mark.parametrize(
    "asked",
    [
        "knn --set k=5 --train {colours}/train --test {colours}/test",
        "semi --fraction 0.3 --set epochs=2 --train {colours}/train --test {colours}/test",
        "segment --protocol seg-moco-fcn16 --images {halves}/images --labels {halves}/labels --void 9 "
        "--set steps=2 --set batch_size=4",
        "detect --voc {squares} --split train --set steps=1 --set batch_size=4 --set shape.channels=16 "
        "--set shape.hidden=16",
    ],
)
def test_workers_change_no_number(
    asked: str, colour_folders: Path, halves: Path, squares: Path, tmp_path: Path
) -> None:
    task, *words = asked.format(colours=colour_folders, halves=halves, squares=squares).split()
    words += ["--arch", "resnet18", "--image-size", "48", "--no-report"]
    found = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}.json"
        said = call("evaluate", task, "random", *words, "--workers", workers, "--out", out)
        assert said.exit_code == 0, said.output + str(said.exception)
        result = json.loads(out.read_text())
        found.append((result["mean"], result["runs"][0]["curves"]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        (("linear", "--cached"), ("epochs=10", "batch_size=12")),
        (("semi", "--fraction", "0.1", "--protocol", "logistic-1pct"), ()),
        (("svm",), ("max_iterations=20000",)),
    ],
)
def test_other_class_folder_commands(
    command: tuple[str, ...], changes: tuple[str, ...], colour_folders: Path, tmp_path: Path
) -> None:
    answer = call(
        *("evaluate", *command, "random", "--arch", "resnet18", "--image-size", 32, "--no-report"),
        *(
            "--train",
            colour_folders / "train",
            "--test",
            colour_folders / "test",
            "--out",
            tmp_path / "r.json",
        ),
        *(word for change in changes for word in ("--set", change)),
    )
    assert answer.exit_code == 0, answer.output + str(answer.exception)
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["mean"][result["headline"]] > 0.9


def test_a_mis_keyed_file_is_refused(weights: Path, colour_folders: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save({f"x{name}": value for name, value in state.items() if "layer1" in name}, tmp_path / "bad.pth")
    folders = ["--train", colour_folders / "train", "--test", colour_folders / "test"]
    answer = call("evaluate", "knn", tmp_path / "bad.pth", "--arch", "resnet18", *folders)
    assert isinstance(answer.exception, UserError)
    assert "of resnet18 matched" in str(answer.exception)


def test_repeated_runs_of_a_fixed_protocol_warn(weights: Path, colour_folders: Path, tmp_path: Path) -> None:
    folders = ["--train", colour_folders / "test", "--test", colour_folders / "test"]
    answer = call(
        *("evaluate", "knn", weights, *folders, "--image-size", 32, "--set", "k=2", "--runs", 2),
        *("--out", tmp_path / "k.json", "--no-report"),
    )
    assert "draws nothing" in answer.output


def test_unknown_protocols_and_missing_data_are_named(weights: Path) -> None:
    for arguments, message in (
        (("segment", weights, "--protocol", "seg"), "choose one of seg-probe"),
        (("segment", weights), "give --images and --labels"),
        (("detect", weights), "give --voc"),
        (("svm", weights), "give --train and --test"),
    ):
        answer = call("evaluate", *arguments)
        assert isinstance(answer.exception, UserError)
        assert message in str(answer.exception)


def test_export_says_how_to_use_the_file(weights: Path, tmp_path: Path) -> None:
    answer = call("export", weights, "--to", "detectron2", "--out", tmp_path / "w.pkl")
    assert answer.exit_code == 0, answer.output
    assert "cfg.MODEL.WEIGHTS" in answer.output
    assert (tmp_path / "w.pkl").exists()

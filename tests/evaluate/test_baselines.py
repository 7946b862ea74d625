"""The random baselines: with BatchNorm statistics of training images, and untouched."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from hapicl.cli import command_line
from hapicl.evaluate.classification.run import knn_task
from hapicl.evaluate.measure import Subject, Task, measure
from hapicl.evaluate.result import Outcome
from hapicl.evaluate.settings import Request

TASKS = [
    "knn --set k=5 --train {colours}/train --test {colours}/test",
    "linear --cached --set epochs=1 --set batch_size=12 --train {colours}/train --test {colours}/test",
    "semi --fraction 0.5 --set epochs=1 --train {colours}/train --test {colours}/test",
    "svm --set max_iterations=20000 --train {colours}/train --test {colours}/test",
    "segment --images {halves}/images --labels {halves}/labels --void 9 --set steps=2 --set batch_size=4",
    "segment --protocol seg-moco-fcn16 --images {halves}/images --labels {halves}/labels --void 9 "
    "--set steps=1 --set batch_size=4",
    "detect --voc {squares} --split train --set steps=1 --set batch_size=4 --set shape.channels=16 "
    "--set shape.hidden=16",
]


def call(weights: str, asked: str, out: Path, arch: str = "resnet18") -> Result:
    task, *words = asked.split()
    words += ["--arch", arch, "--image-size", "48", "--no-report", "--out", str(out)]
    return CliRunner().invoke(command_line, ["evaluate", task, weights, *words])


@pytest.mark.parametrize("asked", TASKS, ids=[" ".join(words.split()[:3]) for words in TASKS])
def test_every_task_reestimates_batchnorm_on_its_training_images_and_says_so(
    asked: str, colour_folders: Path, halves: Path, squares: Path, tmp_path: Path
) -> None:
    asked = asked.format(colours=colour_folders, halves=halves, squares=squares)
    said = call("random", asked, tmp_path / "r.json")
    assert said.exit_code == 0, said.output + str(said.exception)
    assert "BatchNorm statistics re-estimated on" in said.output
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["weights"]["batchnorm_images"] > 0
    assert result["weights"]["kind"] == "random"
    # `linear --cached` was named linear-moco in its file, its page and every table
    assert result["protocol"].endswith("-cached") == ("--cached" in asked)


def test_the_untouched_form_is_a_row_of_its_own(colour_folders: Path, tmp_path: Path) -> None:
    asked = TASKS[0].format(colours=colour_folders)
    said = call("random-untouched", asked, tmp_path / "u.json")
    assert said.exit_code == 0, said.output + str(said.exception)
    assert "as initialised" in said.output
    result = json.loads((tmp_path / "u.json").read_text())
    assert result["weights"]["kind"] == "random-untouched"
    assert "batchnorm_images" not in result["weights"]


def test_a_vit_has_one_random_row(colour_folders: Path, tmp_path: Path) -> None:
    asked = TASKS[0].format(colours=colour_folders)
    for weights in ("random", "random-untouched"):
        said = call(weights, asked, tmp_path / f"{weights}.json", arch="vit_tiny_patch16_224")
        assert said.exit_code == 0, said.output + str(said.exception)
        assert "random and random-untouched are the same row" in said.output
    one, other = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("random", "random-untouched")
    )
    assert one["mean"] == other["mean"]
    assert other["weights"]["kind"] == "random"


def test_random_was_measured_with_batchnorm_statistics_that_any_training_replaces() -> None:
    seen: list[Subject] = []

    def evaluate(subject: Subject) -> Outcome:
        seen.append(subject)
        return Outcome(metrics={"x": 0.0})

    images = torch.randn(8, 3, 64, 64) + 3
    task = Task(
        name="knn",
        headline="x",
        parameters={},
        data={},
        image_size=64,
        evaluate=evaluate,
        train_images=lambda subject: [images],
    )
    for weights in ("random", "random-untouched"):
        request = Request(weights=weights, protocol="p", arch="resnet18", say=lambda text: None)
        measure(request, task)
    fair, untouched = (subject.backbone.state_dict() for subject in seen)
    first = torch.nn.functional.conv2d(images, fair["trunk.conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(fair["trunk.bn1.running_mean"], first.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert torch.equal(untouched["trunk.bn1.running_mean"], torch.zeros(64))
    for name, value in fair.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, untouched[name]), name
    # a run folder of one is not continued by the other
    assert seen[0].identity != seen[1].identity


def test_another_seed_is_another_baseline(colour_folders: Path) -> None:
    request = Request(
        weights="random",
        protocol="knn-dino",
        arch="resnet18",
        image_size=32,
        changes={"k": "3"},
        runs=2,
        say=lambda text: None,
    )
    task = knn_task(request, train=colour_folders / "train", test=colour_folders / "test")
    result, runs = measure(request, task)
    assert len(result["runs"]) == 2
    assert runs[0].weights["sha256"] != runs[1].weights["sha256"]

"""`hapicl compare` end to end on data whose answer is known, and what it does when it is cut off."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image

from hapicl.cli import command_line
from hapicl.engine.stop import Stopped
from hapicl.evaluate.compare import run
from hapicl.evaluate.compare.outcome import pretraining_hours
from hapicl.evaluate.compare.settings import CompareSettings, described_networks, differing_networks
from hapicl.evaluate.finetune import RunStopped

SMALL = ("--image-size", "32", "--stem", "stride1", "--set", "steps=15", "--set", "batch_size=4")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeing.pth: random weights; blind.pth: whose features are 0 whatever the image."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, folder / "seeing.pth")
    state["conv1.weight"] = torch.zeros_like(state["conv1.weight"])
    torch.save(state, folder / "blind.pth")
    return folder


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise with labels of noise: there is nothing to learn."""
    root = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for number in range(12):
        image = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        blocks = generator.integers(0, 2, (4, 4), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(root / "labels" / f"{number}.png")
    return root


def call(*words: object) -> Result:
    """`hapicl compare` with these words."""
    return CliRunner().invoke(command_line, ["compare", *map(str, words)])


def halves_of(halves: Path) -> list[object]:
    """The options of the set of dark and bright halves."""
    return ["--images", halves / "images", "--labels", halves / "labels", "--void", 9, *SMALL]


@pytest.fixture(scope="module")
def decided(weights: Path, halves: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Blind weights against random ones, on halves that any seeing network tells apart."""
    out = tmp_path_factory.mktemp("decided")
    words = ["random", f"blind={weights / 'blind.pth'}", "--fractions", "0.3,1"]
    return call("segment", *words, *halves_of(halves), "--out", out), out


def test_weights_that_see_nothing_hurt(decided: tuple[Result, Path]) -> None:
    answer, out = decided
    assert answer.exit_code == 0, answer.output + str(answer.exception)
    assert "measured by seg-probe: 15 steps of 4 images in every cell, whatever the" in answer.output
    assert "blind against random: hurts at 30 % of the labels (-" in answer.output
    assert "; hurts at 100 % of the labels (-" in answer.output
    record = json.loads((out / "compare.json").read_text())
    for found in record["comparisons"]:
        low, high = found["difference"]["interval"]
        assert low < high < -0.2
        assert found["verdict"] == "lower"
        assert all(pair[0] < pair[1] < 0 for pair in found["test_images"].values())
    page = (out / "compare.html").read_text()
    for text in (
        "blind against random: hurts",
        "<svg ",
        "95 % interval",
        "peak memory, GiB",
        "hapicl compare",
    ):
        assert text in page
    assert "| 30 % (3) | blind |" in (out / "compare.md").read_text()
    assert len((out / "compare.csv").read_text().splitlines()) == 5


def test_every_cell_has_the_same_budget_and_a_seed_the_same_images(decided: tuple[Result, Path]) -> None:
    _, out = decided
    results = [json.loads(file.read_text()) for file in sorted((out / "cells").glob("*.json"))]
    assert len(results) == 12
    assert {(each["parameters"]["steps"], each["parameters"]["batch_size"]) for each in results} == {(15, 4)}
    subsets: dict[tuple[int, float], set[str]] = {}
    for each in results:
        train = each["data"]["train"]
        subsets.setdefault((each["runs"][0]["seed"], train["fraction"]), set()).add(train["files"])
        # 3 of 9 images are fewer than a batch of 4: each twice
        assert (train["images"], train["repeated"]) == {0.3: (3, 2), 1.0: (9, 1)}[train["fraction"]]
        assert each["comparison"]["peak_memory_gib"] > 0.05
        if each["weights"]["kind"] == "random":
            assert each["weights"]["batchnorm_images"] == 9  # of all training images, whatever the fraction
    assert {len(files) for files in subsets.values()} == {1}
    assert len({next(iter(subsets[seed, 0.3])) for seed in range(3)}) > 1
    assert len({next(iter(subsets[seed, 1.0])) for seed in range(3)}) == 1
    assert not list(out.rglob("*.runs"))


def test_what_is_there_is_not_measured_again(
    decided: tuple[Result, Path],
    weights: Path,
    halves: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = shutil.copytree(decided[1], tmp_path / "copy")
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("a cell was measured again"))
    # another name, another order, another reference, one fraction less: the same cells
    words = [f"nothing={weights / 'blind.pth'}", "random", "--against", "nothing", "--fractions", "1"]
    answer = call("segment", *words, *halves_of(halves), "--out", out)
    assert answer.exit_code == 0, answer.output + str(answer.exception)
    assert "6 cells: 6 measured before, 0 to go" in answer.output
    assert "random against nothing: better at 100 % of the labels (+" in answer.output


def test_nothing_wins_where_nothing_can(weights: Path, noise: Path, tmp_path: Path) -> None:
    seeing = weights / "seeing.pth"  # random weights, as those of `random` are
    data = ["--images", noise / "images", "--labels", noise / "labels", *SMALL, "--fractions", "1"]
    for pair in (["random", seeing], [f"one={seeing}", f"two={seeing}", "--against", "one"]):
        answer = call("segment", *pair, *data, "--out", tmp_path / "c")
        assert answer.exit_code == 0, answer.output + str(answer.exception)
        (found,) = json.loads((tmp_path / "c/compare.json").read_text())["comparisons"]
        assert found["verdict"] == "undecided"
    # the same weights under two names are the same cells
    assert "6 cells: 6 measured before, 0 to go" in answer.output
    assert "both gave the same numbers in every seed" in answer.output


def test_a_stopped_comparison_keeps_its_cells_and_goes_on(
    weights: Path, halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["segment", f"one={weights / 'seeing.pth'}", f"two={weights / 'blind.pth'}", "--against", "one"]
    words += ["--fractions", "1", "--seeds", "1", *halves_of(halves), "--out", tmp_path / "c"]
    measure, calls = run.measure, []

    def stopped_twice(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:  # in the training loop
            raise RunStopped("stopped by SIGINT after step 3 of 15; the same command continues")
        if len(calls) == 3:  # while test images are measured
            raise Stopped(signal.SIGINT)
        return measure(*given)

    monkeypatch.setattr(run, "measure", stopped_twice)
    for _ in range(2):
        answer = call(*words)
        assert answer.exit_code == 75
        assert "stopped by SIGINT" in answer.output
        assert "1 of 2 cells are done; the same command goes on" in answer.output
    assert (
        "two against one: not measured at 100 % of the labels." in (tmp_path / "c/compare.html").read_text()
    )
    answer = call(*words)
    assert answer.exit_code == 0, answer.output + str(answer.exception)
    assert "2 cells: 1 measured before, 1 to go" in answer.output
    assert len(calls) == 4
    assert "undecided at 100 % of the labels: one seed says nothing of spread" in answer.output


def test_a_budget_begins_no_cell_that_would_end_later(
    weights: Path, halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["segment", f"one={weights / 'seeing.pth'}", f"two={weights / 'blind.pth'}", "--against", "one"]
    words += ["--fractions", "1", *halves_of(halves), "--out", tmp_path / "c"]
    answer = call(*words, "--budget", 0)
    assert answer.exit_code == 75
    assert "0 of 6 cells are done" in answer.output
    assert not (tmp_path / "c/compare.html").exists()
    measure = run.measure

    def half_an_hour(*given: Any) -> Any:
        result, runs = measure(*given)
        result["runs"][0]["seconds"] = 1800.0
        return result, runs

    monkeypatch.setattr(run, "measure", half_an_hour)
    answer = call(*words, "--budget", 0.25)
    assert answer.exit_code == 75
    assert "5 cells left, about 2:30:00; 0 of them fit into the budget" in answer.output
    assert "so that 0 of 3 seeds are whole (all would need --budget" in answer.output
    assert "1 of 6 cells are done" in answer.output


def test_detection_with_a_run_for_each_seed(weights: Path, squares: Path, tmp_path: Path) -> None:
    for seed in range(2):
        torch.save(torch.load(weights / "seeing.pth", weights_only=True), tmp_path / f"run{seed}.pth")
    small = ("shape.channels=16", "shape.hidden=16", "shape.regions=8", "steps=1", "batch_size=4")
    changes = [word for change in small for word in ("--set", change)]
    data = ["--voc", squares, "--split", "train", "--test-split", "test", "--image-size", 64, *changes]
    pair = ["random", f"ours={tmp_path}/run{{seed}}.pth", "--fractions", "0.5", "--seeds", 2]
    answer = call("detect", *pair, *data, "--out", tmp_path / "c")
    assert answer.exit_code == 0, answer.output + str(answer.exception)
    record = json.loads((tmp_path / "c/compare.json").read_text())
    assert (record["headline"], record["labelled_images"]) == ("ap50", {"0.5": 6})
    assert set(record["comparisons"][0]["test_images"]) == {"0", "1"}
    assert "the same weights for every seed" not in answer.output
    assert "ours against random: undecided at 50 % of the labels" in answer.output  # whatever two seeds give


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segment", "random"], "compare 2 to 50 initialisations"),
        (["segment", "a.pth", "b.pth"], "compared with what?"),
        (["segment", "random", "gone.pth"], "no weight file gone.pth"),
        (["segment", "random", "gone.pth", "--protocol", "seg-prob"], "did you mean seg-probe?"),
        (["segment", "random", "gone.pth", "--set", "step=3"], "did you mean steps?"),
        (["segment", "random", "gone.pth", "--fractions", "5,25"], "--fractions 5,25: give fractions"),
        (["segment", "random", "x/a.pth", "y/a.pth"], "are both called a; name one of them"),
        (["segment", "random", "=a.pth"], "give NAME=WEIGHTS"),
        (["segment", "random", "random-untouched"], "random weights are of which network? Give --arch"),
        (["detect", "random", "torchvision:resnet1"], "torchvision's weights serve"),
        (["detect", "random", "torchvision:resnet18"], "give --voc"),
        (["segment", "random", "torchvision:resnet18", "--seeds", "2000"], "setting seeds"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    answer = call(*words, "--out", tmp_path / "c")
    assert message in str(answer.exception), answer.output
    assert "\n" not in str(answer.exception)
    assert not (tmp_path / "c").exists()


def test_other_networks_are_told_before_the_work(weights: Path) -> None:
    pair = {"random": "random", "ours": str(weights / "seeing.pth"), "theirs": "torchvision:resnet50"}
    settings = CompareSettings(initialisations=pair, fractions=(1.0,), protocol="seg-probe")
    (warning,) = differing_networks(described_networks(settings))
    assert "resnet18 (stem by the size of the input): ours; resnet50 (stem" in warning
    alike = settings.replace(initialisations={"random": "random", "ours": pair["ours"]})
    assert differing_networks(described_networks(alike)) == []


def test_a_log_of_an_earlier_version_ended_a_comparison_after_its_last_cell(tmp_path: Path) -> None:
    pair = {"random": "random", "ours": str(tmp_path)}
    settings = CompareSettings(initialisations=pair, fractions=(1.0,), protocol="seg-probe", arch="resnet18")
    log = tmp_path / "metrics.jsonl"
    assert pretraining_hours(settings, "ours") is None
    log.write_text('{"step": 1, "seconds": 3600.0}\n{"step": 2, "seconds": 1800.0}\n')
    assert pretraining_hours(settings, "ours") == 1.5
    log.write_text('{"step": 1, "seconds": 3600.0, "samples_per_second": 3.0}\n')
    assert pretraining_hours(settings, "ours") is None
    assert pretraining_hours(settings, "random") is None


def test_fractions_that_are_the_same_images_are_refused(weights: Path, halves: Path, tmp_path: Path) -> None:
    words = ["segment", "random", weights / "seeing.pth", "--fractions", "0.1,0.12", *halves_of(halves)]
    answer = call(*words, "--out", tmp_path / "c")
    assert "10 % and 12 % of 9 labelled images are both 1" in str(answer.exception)


def test_the_command_on_the_page_makes_the_page_again(decided: tuple[Result, Path], halves: Path) -> None:
    _, out = decided
    command = json.loads((out / "compare.json").read_text())["command"]
    assert command.startswith("hapicl compare segment random blind=")
    assert f"--images {halves}/images" in command
    assert "--set steps=15 --set batch_size=4" in command
    assert "--seeds" not in command  # a default

"""The claims table: its verdicts by hand, its page, and the script on tiny synthetic data."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
from claims_table import CLAIMS, ClaimsTable, claim_lines, compare, render, statement

from hapicl.evaluate.result import Outcome, Run, make_result, write_result
from hapicl.pretrain.methods.registry import METHODS


def table(values: dict[tuple[str, str], list[float]], *, smoke: bool = False) -> ClaimsTable:
    rows = tuple(dict.fromkeys(row for row, _ in values))
    columns = tuple(dict.fromkeys(column for _, column in values))
    starts = {"moco_v2": "random", "densecl": "random", "hapicl_m": "random", "mae": "random_vit"}
    return ClaimsTable(scale="small", smoke=smoke, rows=rows, columns=columns, values=values, starts=starts)


def test_a_difference_is_shown_beyond_twice_its_error_and_with_three_seeds() -> None:
    # variances .01^2 each: standard error sqrt(2 * .0001 / 3) = .00816
    first, second = [0.51, 0.52, 0.53], [0.49, 0.50, 0.51]
    difference, error, verdict = compare(first, second)
    assert (difference, error) == (pytest.approx(0.02), pytest.approx(0.008165, rel=1e-3))
    assert verdict == "higher"
    assert compare(second, first)[2] == "lower"
    assert compare([0.505, 0.515, 0.525], second)[2] == "open"  # .015 is under two errors
    assert compare(first[:2], second[:2])[2] == "open"  # two seeds decide nothing
    assert compare([0.9], [0.1]) == (pytest.approx(0.8), None, "open")


def test_lines_and_statement_count_the_same() -> None:
    values = {
        ("random", "seg"): [0.1, 0.1, 0.1],
        ("moco_v2", "seg"): [0.30, 0.31, 0.32],
        ("densecl", "seg"): [0.40, 0.41, 0.42],
        ("hapicl_m", "seg"): [0.31, 0.30, 0.32],
    }
    lines = claim_lines(table(values), CLAIMS[1])
    assert lines == ["densecl against moco_v2, seg: +10.0 (± 0.8, 3 seeds): shown"]
    text = " ".join(statement(table(values)))
    assert "Of 2 comparisons" in text
    assert "1 come out as claimed, 0 against it and 1 stay open" in text
    assert "seg 3 of 3" in text
    assert "smoke" not in text
    assert statement(table(values, smoke=True))[0].startswith("This is the smoke scale")


def test_a_row_is_held_against_the_random_start_of_its_own_backbone() -> None:
    values = {
        ("random", "seg"): [0.1],
        ("random_vit", "seg"): [0.5],
        ("moco_v2", "seg"): [0.3],
        ("mae", "seg"): [0.4],
    }
    assert "seg 1 of 2" in " ".join(statement(table(values)))


def test_the_page_says_what_was_not_run() -> None:
    values = {("random", "seg"): [0.1, 0.2], ("moco_v2", "knn"): [0.5]}
    page = render(table(values), figure="claims.png", command="run me", date="2026-01-01")
    assert "| random | 15.0 ± 7.1 (2) | not run |" in page
    assert "| moco_v2 | not run | 50.0 (1) |" in page
    assert "Not run." in page
    assert "run me" in page


def test_claims_name_rows_that_the_script_can_make(script: ModuleType) -> None:
    for claim in CLAIMS:
        for pair in claim.pairs:
            assert set(pair) <= {*METHODS, *script.CONTROLS}


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("claims")


@pytest.fixture
def sets(tmp_path: Path, halves: Path) -> Path:
    """A data folder with the binary segmentation set only."""
    root = tmp_path / "sets" / "fg_human"
    root.mkdir(parents=True)
    (root / "images").symlink_to(halves / "images")
    (root / "masks").symlink_to(halves / "labels")
    return root.parent


def test_every_registered_method_has_a_place(script: ModuleType) -> None:
    known = {*script.ORDER, *script.VIT, "hapicl"}  # hapicl alone is figure-ground segmentation
    assert known == {*METHODS, *script.CONTROLS}


def test_the_control_row_is_hapicl_m_with_its_redraws_and_no_pixel_term(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []
    monkeypatch.setattr(script, "run_command", lambda command, *_: commands.append(command))
    monkeypatch.setattr(script, "measure_cost", lambda _: {})
    (tmp_path / "costs").mkdir()
    scale = script.SCALES["smoke"]
    script.pretrain_row("hapicl_m_redraws_only", 0, scale, tmp_path / "m.h5", tmp_path, None, "cpu")
    (command,) = commands
    assert command[command.index("--recipe") + 1] == "hapicl_m_small"
    assert "config.pixel_weight=0" in command
    assert str(tmp_path / "runs" / "hapicl_m_redraws_only-s0") in command


def test_the_script_fills_what_is_missing_and_renders(
    script: ModuleType,
    sets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        "--data",
        str(sets),
        "--work",
        str(tmp_path / "work"),
        "--masks",
        "unused.h5",
        "--scale",
        "smoke",
    ]
    arguments += ["--methods", "moco_v2", "--seeds", "2", "--docs", str(tmp_path / "docs")]
    arguments += ["--out", str(tmp_path / "claims.json"), "--device", "cpu", "--workers", "0"]
    monkeypatch.setattr(script, "pretrain_row", lambda *_: "random")  # pretraining has its own tests
    monkeypatch.setitem(script.RANDOM_ROWS, "moco_v2", ("random", "resnet18"))
    monkeypatch.setitem(script.SCALES["smoke"].foreground, "steps", "20")
    monkeypatch.setitem(script.SCALES["smoke"].foreground, "batch_size", "4")
    assert script.main(arguments) == 0
    page = (tmp_path / "docs/claims.md").read_text()
    assert "smoke scale" in page
    assert "seg-probe people mIoU" in page
    assert "no data set seg_camvid_trainval" in page
    assert (tmp_path / "docs/claims.png").stat().st_size > 1000
    cells = json.loads((tmp_path / "claims.json").read_text())["cells"]
    rows = ("random", "random-untouched", "moco_v2")
    assert {(cell["row"], len(cell["values"])) for cell in cells} == {(row, 2) for row in rows}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    capsys.readouterr()
    assert script.main(arguments) == 0  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert "seed" not in capsys.readouterr().out


def test_a_spent_budget_leaves_75_and_renders_what_is_there(
    script: ModuleType, sets: Path, tmp_path: Path
) -> None:
    arguments = [
        "--data",
        str(sets),
        "--work",
        str(tmp_path / "work"),
        "--masks",
        "unused.h5",
        "--scale",
        "smoke",
    ]
    arguments += [
        "--budget-minutes",
        "0",
        "--docs",
        str(tmp_path / "docs"),
        "--out",
        str(tmp_path / "c.json"),
    ]
    assert script.main(arguments) == 75
    assert not (tmp_path / "docs").exists()
    write_result(random_result(batchnorm_images=8), cell(tmp_path, "random"))
    assert script.main(arguments) == 75
    assert "| random | 50.0 (1) |" in (tmp_path / "docs/claims.md").read_text()


def random_result(**weights: object) -> dict[str, object]:
    """The result of a random row."""
    about = {"spec": "random", "kind": "random", "arch": "resnet18", "sha256": "0", **weights}
    run = Run(seed=0, seconds=1.0, weights=about, outcome=Outcome(metrics={"miou": 0.5}))
    return make_result(
        task="segment", protocol="seg-probe", headline="miou", parameters={}, data={}, runs=[run]
    )


def cell(root: Path, row: str) -> Path:
    """Where the script keeps a row's people mIoU of the first seed."""
    return root / f"work/smoke/results/seg-probe-people-miou/{row}-s0.json"


def test_random_rows_with_untouched_batchnorm_are_not_taken_for_the_baseline(
    script: ModuleType, tmp_path: Path
) -> None:
    # trained rows were held against a network whose BatchNorm any training changes within 30 steps
    write_result(random_result(), cell(tmp_path, "random"))
    write_result(random_result(), cell(tmp_path, "random-untouched"))
    assert not script.is_measured(cell(tmp_path, "random"), "random")
    assert script.is_measured(cell(tmp_path, "random-untouched"), "random-untouched")
    write_result(random_result(batchnorm_images=8), cell(tmp_path, "random"))
    assert script.is_measured(cell(tmp_path, "random"), "random")
    assert not script.is_measured(cell(tmp_path, "moco_v2"), "moco_v2")


@pytest.mark.slow
def test_the_script_builds_masks_and_pretrains(
    script: ModuleType, sets: Path, halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = dataclasses.replace(
        script.SCALES["smoke"],
        pretrain=("--steps", "2", "--batch-size", "4", "--image-size", "32", "--set", "log_every=1"),
        limit=12,
        resnet_stem="stride1",
        foreground={"height": "32", "width": "32", "steps": "2", "batch_size": "4"},
    )
    monkeypatch.setitem(script.SCALES, "smoke", tiny)
    arguments = ["--data", str(sets), "--images", str(halves / "images"), "--work", str(tmp_path / "work")]
    arguments += ["--methods", "hapicl_m", "--seeds", "1", "--docs", str(tmp_path / "docs")]
    arguments += ["--out", str(tmp_path / "claims.json"), "--device", "cpu", "--scale", "smoke"]
    assert script.main(arguments) == 0
    content = json.loads((tmp_path / "claims.json").read_text())
    assert {cell["row"] for cell in content["cells"]} == {"random", "random-untouched", "hapicl_m"}
    assert set(content["costs"]["hapicl_m"]) == {
        "ms per image, training",
        "peak memory, GiB",
        "ms per image, masks (once, one core)",
    }

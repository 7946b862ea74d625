"""The claims table: its comparisons, its store, its page, and the script on tiny synthetic data."""

import dataclasses
import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ablation_masks import around, box_iou, rectangle
from claims_columns import SCALES, columns, settings_of
from claims_page import parts, statements
from claims_recipes import CONTINUED, QUOTED, continued_sentence, sentence, write_recipes
from claims_rows import GROUPS, METHOD_ROWS, ROWS, VIT
from claims_store import ClaimsStore, cost, course
from claims_table import CLAIMS, QUESTIONS, Claim, lines_of

from hapicl.common.errors import UserError
from hapicl.engine.stop import Stopped, raise_on_signals
from hapicl.evaluate.compare.statistics import paired_difference
from hapicl.evaluate.result import Outcome, Run, make_result, write_result
from hapicl.pretrain.methods.registry import METHODS


def values() -> dict[tuple[str, str], dict[int, float]]:
    """Three rows of three seeds in one column."""
    return {
        ("random", "seg"): dict.fromkeys(range(3), 0.1),
        ("moco_v2", "seg"): {0: 0.30, 1: 0.31, 2: 0.32},
        ("densecl", "seg"): {0: 0.40, 1: 0.41, 2: 0.42},
        ("hapicl_m", "seg"): {0: 0.31, 1: 0.30, 2: 0.32},
        ("mae", "seg"): {0: 0.2, 1: 0.2, 2: 0.2},
        ("random_vit", "seg"): {0: 0.5, 1: 0.5, 2: 0.51},
    }


def test_lines_and_statements_count_the_same() -> None:
    (line,) = lines_of(values(), ["seg"], CLAIMS[1])
    assert (line.row, line.rival) == ("densecl", "moco_v2")
    assert line.difference.text() == "+10.0 (+10.0 to +10.0, 3 seeds): higher"
    text = " ".join(statements(values(), ["seg"]))
    assert "Of 2 comparisons" in text
    assert "1 are decided as claimed, 0 against it and 1 are undecided" in text
    assert "seg 3 of 4" in text  # mae is held against the ViT's random start, which is above it


def test_claims_and_questions_name_rows_that_the_script_can_make() -> None:
    asked: tuple[Claim, ...] = (*CLAIMS, *QUESTIONS)
    assert {name for claim in asked for pair in claim.pairs for name in pair} <= set(ROWS)
    assert all(row.after in ROWS for row in ROWS.values() if row.after)


def test_a_backbone_is_fine_tuned_by_the_networks_of_its_kind(tmp_path: Path) -> None:
    every = columns(SCALES["cpu"], tmp_path, tmp_path)
    taken = {
        name: {column.protocol for column in every if column.takes(ROWS[name]) and column.costly}
        for name in ("hapicl_s", "hapicl_s[refined]", "mae", "random_vit", "random-untouched", "simclr@1/4")
    }
    resnet, vit = {"detect-small", "seg-moco-fcn16"}, {"detect-small-vit", "seg-upernet-small"}
    assert taken["hapicl_s"] == taken["hapicl_s[refined]"] == resnet
    assert taken["mae"] == taken["random_vit"] == vit
    assert taken["random-untouched"] == taken["simclr@1/4"] == set()
    cheap = [column for column in every if not column.costly]
    assert all(column.takes(row) for column in cheap for row in ROWS.values())


def test_a_file_without_a_later_column_is_taken_and_one_of_other_settings_is_not(tmp_path: Path) -> None:
    now = settings_of(SCALES["cpu"])
    before = {name: text for name, text in now.items() if name != "seg-upernet-small"}
    ClaimsStore(tmp_path / "claims.json", "cpu", before).save()
    ClaimsStore(tmp_path / "claims.json", "cpu", now).save()
    with pytest.raises(UserError, match="seg-upernet-small"):
        ClaimsStore(tmp_path / "claims.json", "cpu", now | {"seg-upernet-small": "steps 1"})


def test_every_registered_method_has_a_row_of_its_own_name() -> None:
    assert {row.name for row in METHOD_ROWS} == {*METHODS, "hapicl_m_redraws_only"}
    assert {row.name for row in METHOD_ROWS if row.vit} == set(VIT)


def store(path: Path, **settings: str) -> ClaimsStore:
    """A store of the toy scale."""
    return ClaimsStore(path, "smoke", settings)


def result(value: float = 0.5, **weights: object) -> dict[str, object]:
    """A result file's content, of random weights."""
    about = {"spec": "random", "kind": "random", "arch": "resnet18", "sha256": "0", **weights}
    run = Run(seed=0, seconds=1.0, weights=about, outcome=Outcome(metrics={"miou": value}))
    return make_result(
        task="segment", protocol="seg-probe", headline="miou", parameters={}, data={}, runs=[run]
    )


def test_a_store_keeps_cells_and_runs_and_refuses_numbers_of_other_settings(tmp_path: Path) -> None:
    file = tmp_path / "claims.json"
    first = store(file, probe="steps 2")
    first.add_cell("moco_v2", "seg", 1, result(0.25))
    first.add_run("moco_v2", 1, {"steps": 3, "loss": [[1, 2.0]]})
    first.save()
    again = store(file, probe="steps 2")
    assert again.values() == {("moco_v2", "seg"): {1: 0.25}}
    assert ("moco_v2", "seg", 1) in again
    assert ("moco_v2", "seg", 0) not in again
    assert again.runs["moco_v2", 1]["steps"] == 3
    with pytest.raises(UserError, match="measured with another probe"):
        store(file, probe="steps 3")
    file.write_text("{}")
    with pytest.raises(UserError, match="no file of claims"):
        store(file)


def test_a_run_tells_its_course_and_its_cost(tmp_path: Path) -> None:
    lines = [
        {
            "step": step,
            "loss": 1.0 / step,
            "speed/samples_per_second": 1.0 if step == 1 else 10.0,
            "memory/peak_gib": step / 100,
        }
        for step in range(1, 101)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"environment": {"device": "a GPU"}}))
    found = course(tmp_path)
    assert [found["loss"][0], found["loss"][-1]] == [[1, 1.0], [100, 0.01]]
    assert len(found["loss"]) < 60
    assert (found["steps"], found["device"]) == (100, "a GPU")
    price = cost(tmp_path)
    assert (price["seconds_per_image"], price["peak_memory_gib"], price["device"]) == (0.1, 1.0, "a GPU")


def test_the_page_says_where_was_trained_and_what_it_costs(tmp_path: Path) -> None:
    here = store(tmp_path / "claims.json")
    here.add_cell("moco_v2", "knn", 0, result(0.5))
    here.add_run("moco_v2", 0, {"steps": 3, "loss": [[1, 2.0]], "device": "a GPU"})
    price = {"seconds_per_image": 0.002, "peak_memory_gib": 0.5, "device": "a CPU", "threads": 1}
    here.add_cost("moco_v2", price)
    here.save()
    again = store(tmp_path / "claims.json")
    page = "\n\n".join(parts(again, again.values(), ["knn"], []))
    assert "| moco_v2 | 2.0 | 0.50 | a CPU, torch threads: 1 |" in page
    assert "trained them: a GPU 1;" in page


def test_the_page_says_what_was_not_run(tmp_path: Path) -> None:
    here = store(tmp_path / "claims.json")
    for seed, value in enumerate((0.1, 0.2)):
        here.add_cell("random", "seg", seed, result(value))
    here.add_cell("moco_v2", "knn", 0, result(0.5))
    page = "\n\n".join(parts(here, here.values(), ["seg", "knn"], ["moco_v2, seed 1: broke"]))
    assert "| random | 15.0 ± 7.1 (2) | - |" in page
    assert "| moco_v2 | - | 50.0 (1) |" in page
    assert "Not run." in page
    assert "moco_v2, seed 1: broke" in page
    assert re.search("^- methods: simclr, .*, densecl, byol, ", page, re.MULTILINE)


@pytest.fixture(scope="module")
def table(repository: Path) -> ClaimsStore:
    """The committed numbers that README and recipes quote."""
    return ClaimsStore(
        repository / f"benchmarks/results/claims_{QUOTED}.json", QUOTED, settings_of(SCALES[QUOTED])
    )


def test_the_readme_quotes_the_committed_table(repository: Path, table: ClaimsStore) -> None:
    text = " ".join((repository / "README.md").read_text().split())
    values = table.values()

    def told(row: str, rival: str, of: str) -> tuple[str, str]:
        """Mean difference and interval as README writes them."""
        column = f"seg-probe {of} mIoU"
        difference = paired_difference(values[row, column], values[rival, column])
        assert difference is not None
        assert difference.verdict == "higher"
        assert difference.interval is not None
        low, high = difference.interval
        return f"{100 * difference.mean:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"

    first, second = told("hapicl_s", "simclr", "bags"), told("hapicl_m", "moco_v2", "bags")
    assert (
        f"better by {first[0]} mIoU after HAPiCL-S than after SimCLR (95 % interval {first[1]}), and by "
        f"{second[0]} after HAPiCL-M than after MoCo v2 ({second[1]})" in text
    )
    bags, people = (told("hapicl_m", "hapicl_m_redraws_only", of)[0] for of in ("bags", "people"))
    assert f"without its pixel term HAPiCL-M loses {bags} there and {people} on people" in text
    assert f"each of {len(METHOD_ROWS)} methods and controls" in text


def test_the_masks_page_quotes_the_committed_table(repository: Path, table: ClaimsStore) -> None:
    page = (repository / "docs/masks.md").read_text()
    of_row = {
        "`fast`": "hapicl_s[fast]",
        "`quality`": "hapicl_s",
        "`refined`": "hapicl_s[refined]",
        "one random rectangle": "hapicl_s[rectangles]",
        "Felzenszwalb": "hapicl_s[felzenszwalb]",
        "SimCLR": "simclr",
    }
    header, lines = "| masks | box IoU | coverage | people | bags |\n", {}
    for line in page.split(header)[1].split("\n\n")[0].splitlines()[1:]:
        label, *_, people, bags = (text.strip() for text in line.strip("|").split("|"))
        (name,) = [row for start, row in of_row.items() if label.startswith(start)]
        lines[name] = people, bags
    assert set(lines) == set(of_row.values())
    for row, told in lines.items():
        for text, of in zip(told, ("people", "bags"), strict=True):
            shares = table.values()[row, f"seg-probe {of} mIoU"].values()
            assert text == f"{100 * fmean(shares):.1f} ± {100 * stdev(shares):.1f}"


def test_recipes_say_what_the_committed_table_measured(repository: Path, table: ClaimsStore) -> None:
    from hapicl.pretrain.config.recipe_files import load_recipe

    said = {f"{row.name}_small": sentence(table, row) for row in METHOD_ROWS if not row.changes}
    said |= {name: continued_sentence(table, *rows) for name, rows in CONTINUED.items()}
    assert all(said.values())
    for name, text in said.items():
        about = (repository / f"pretrain/recipes/{name}.yaml").read_text()
        assert f'measured: "{text}"' in about
        assert name.startswith(load_recipe(name)["method"])


def test_recipes_are_renewed_by_their_line_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "moco_v2_small.yaml"
    recipe.write_text('about:\n  measured: "not run"\n  note: "kept"\nmethod: moco_v2\n')
    for value, quoted in ((0.2, 20.0), (0.4, 40.0)):
        here = ClaimsStore(tmp_path / f"{value}.json", QUOTED, {})
        here.add_cell("random", "seg", 0, result(0.1))
        here.add_cell("moco_v2", "seg", 0, result(value))
        write_recipes(here, tmp_path)
        said = f"1 seed (random weights in brackets; docs/claims.md): seg {quoted} (10.0)"
        assert said in recipe.read_text()
    assert recipe.read_text().endswith('  note: "kept"\nmethod: moco_v2\n')
    with pytest.raises(UserError, match="leave --recipes out"):
        write_recipes(store(tmp_path / "smoke.json"), tmp_path)


def test_a_random_rectangle_has_the_coverage_asked_for() -> None:
    for at, share in enumerate((0.02, 0.3, 0.9)):
        mask = rectangle((64, 48), share, np.random.default_rng(at))
        assert mask.mean() == pytest.approx(share, rel=0.1, abs=0.01)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_boxes_around_masks_are_compared_as_shares_of_the_image() -> None:
    mask = np.zeros((10, 20), bool)
    mask[2:6, 5:15] = True
    assert around(mask).tolist() == [0.25, 0.2, 0.75, 0.6]
    assert box_iou(around(mask), np.array([0.25, 0.2, 0.5, 0.6])) == pytest.approx(0.5)
    assert box_iou(around(np.zeros((4, 4), bool)), around(mask)) == 0.0


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("claims")


def plan(script: ModuleType, tmp_path: Path, **changes: object) -> object:
    """A plan of the toy scale."""
    options = script.parse(["--scale", "smoke", "--work", str(tmp_path), "--device", "cpu"])
    return dataclasses.replace(script.plan_of(options), masks={"default": tmp_path / "m.h5"}, **changes)


def test_the_control_row_is_hapicl_m_with_its_redraws_and_no_pixel_term(
    script: ModuleType, tmp_path: Path
) -> None:
    row = ROWS["hapicl_m_redraws_only"]
    command = script.pretrain_command(row, 0, plan(script, tmp_path), tmp_path / "run")
    assert command[command.index("--recipe") + 1] == "hapicl_m_small"
    assert command[command.index("--masks") + 1] == str(tmp_path / "m.h5")
    assert "config.pixel_weight=0" in command


def test_a_run_that_was_left_goes_on_by_its_own_settings(script: ModuleType, tmp_path: Path) -> None:
    # `--recipe` beside `--resume` is refused, so that no table continued a run
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").touch()
    command = script.pretrain_command(ROWS["simclr"], 0, plan(script, tmp_path), tmp_path / "run")
    assert command[-2:] == ["--resume", "auto"]
    assert not {"--recipe", "--steps", "--set", "--seed"} & set(command)


def test_rows_differ_by_masks_length_and_start(script: ModuleType, tmp_path: Path) -> None:
    here = plan(script, tmp_path)
    with pytest.raises(UserError, match="--masks refined=FILE"):
        script.pretrain_command(ROWS["hapicl_s[refined]"], 0, here, tmp_path / "run")
    short = script.pretrain_command(ROWS["simclr@1/4"], 0, here, tmp_path / "run")
    assert short[short.index("--steps") + 1] == "10"
    with pytest.raises(UserError, match="starts from simclr@1/2"):
        script.pretrain_command(ROWS["hapicl_s_after_simclr"], 0, here, tmp_path / "run")


def test_what_is_most_wanted_comes_first_and_nothing_twice(script: ModuleType, tmp_path: Path) -> None:
    here = store(tmp_path / "claims.json")
    every = script.columns(script.SCALES["smoke"], tmp_path, tmp_path)
    people = [column for column in every if "people" in column.title or "raccoon" in column.title]
    here.add_cell("random", people[0].title, 0, result())
    batches = script.batches_of([["simclr"], ["hapicl_s_after_simclr", "simclr"], ["mae"]])
    assert [[row.name for row in rows] for rows in batches] == [
        ["random", "random-untouched", "random_vit"],
        ["simclr"],
        ["simclr@1/2", "hapicl_s_after_simclr"],
        ["mae"],
    ]
    jobs = [(job.row, job.seed, len(job.titles)) for job in script.jobs_of(batches[:2], 2, people, here)]
    assert jobs[:2] == [("random-untouched", 0, 1), ("random_vit", 0, 1)]  # random's cell is there
    assert jobs.index(("simclr", 1, 1)) > jobs.index(("random", 1, 1))
    with pytest.raises(UserError, match="simclrr"):
        script.batches_of([["simclrr"]])
    assert not any(row.fine_tuned for row in (*GROUPS["trials"], *GROUPS["lengths"]))


@pytest.fixture
def sets(tmp_path: Path, halves: Path) -> Path:
    """A data folder with the binary segmentation set only."""
    root = tmp_path / "sets" / "fg_human"
    root.mkdir(parents=True)
    (root / "images").symlink_to(halves / "images")
    (root / "masks").symlink_to(halves / "labels")
    return root.parent


def asked(tmp_path: Path, sets: Path, *more: str) -> list[str]:
    """Options of a toy table."""
    folders = ["--data", str(sets), "--work", str(tmp_path / "work"), "--docs", str(tmp_path / "docs")]
    return [*folders, "--out", str(tmp_path / "c.json"), "--scale", "smoke", "--device", "cpu", *more]


def test_a_spent_budget_leaves_75_and_renders_what_is_there(
    script: ModuleType, sets: Path, tmp_path: Path
) -> None:
    arguments = asked(tmp_path, sets, "--masks", "unused.h5", "--budget-minutes", "0")
    assert script.main(arguments) == 75
    assert not (tmp_path / "docs").exists()
    write_result(result(batchnorm_images=8), cell(script, tmp_path, "random"))
    assert script.main(arguments) == 75
    assert "| random | 50.0 (1) |" in (tmp_path / "docs/claims.md").read_text()


def cell(script: ModuleType, root: Path, row: str) -> Path:
    """Where the script keeps a row's people mIoU of the first seed."""
    return script.cell_file(root / "work/smoke", "seg-probe people mIoU", row, 0)  # type: ignore[no-any-return]


def test_random_rows_with_untouched_batchnorm_are_not_taken_for_the_baseline(
    script: ModuleType, tmp_path: Path
) -> None:
    # trained rows were held against a network whose BatchNorm any training changes within 30 steps
    rows = ("random", "random-untouched", "moco_v2")
    write_result(result(), cell(script, tmp_path, "random"))
    write_result(result(), cell(script, tmp_path, "random-untouched"))
    assert [script.is_result(cell(script, tmp_path, row), row) for row in rows] == [False, True, False]
    write_result(result(batchnorm_images=8), cell(script, tmp_path, "random"))
    assert script.is_result(cell(script, tmp_path, "random"), "random")


def test_a_signal_left_the_training_running(
    script: ModuleType, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def sleep(_: list[str], **options: Any) -> subprocess.Popen[bytes]:
        program = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
        started.append(real([sys.executable, "-c", program], **options))
        return started[0]

    real = subprocess.Popen
    plan = script.plan_of(script.parse(list(asked(tmp_path, sets))))
    monkeypatch.setattr(script.subprocess, "Popen", sleep)
    with pytest.raises(Stopped, match="SIGTERM"), raise_on_signals([signal.SIGTERM]):
        script.run_command(["pretrain"], tmp_path / "log", plan)
    assert started[0].poll() == -signal.SIGTERM


@pytest.mark.slow
def test_the_script_builds_masks_and_pretrains_and_does_nothing_twice(
    script: ModuleType,
    sets: Path,
    halves: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = dataclasses.replace(
        script.SCALES["smoke"],
        image_size=32,
        steps=2,
        pretrain=("--batch-size", "4", "--set", "log_every=1"),
        limit=12,
        resnet=("resnet18", "stride1"),
        foreground={"height": "32", "width": "32", "steps": "2", "batch_size": "4"},
    )
    monkeypatch.setitem(script.SCALES, "smoke", tiny)
    more = ("--images", str(halves / "images"), "--rows", "hapicl_m", "--seeds", "1")
    assert script.main(asked(tmp_path, sets, *more)) == 0
    content = json.loads((tmp_path / "c.json").read_text())
    assert {cell["row"] for cell in content["cells"]} == {"random", "random-untouched", "hapicl_m"}
    (run,) = content["runs"]
    assert (run["row"], run["steps"]) == ("hapicl_m", 2)
    assert run["device"]
    assert content["masks"]["images"] == 12
    page = (tmp_path / "docs/claims.md").read_text()
    assert "seg-probe people mIoU" in page
    assert "| hapicl_m | " in page
    assert (tmp_path / "docs/claims_curves.png").stat().st_size > 1000
    capsys.readouterr()
    assert script.main(asked(tmp_path, sets, *more, "--masks", "gone.h5")) == 0  # nothing is left to do
    assert "seed" not in capsys.readouterr().out
    monkeypatch.setattr(script, "METHOD_ROWS", (ROWS["hapicl_m"],))
    monkeypatch.setattr(script, "COST_STEPS", 8)
    assert script.main(asked(tmp_path, sets, *more, "--costs")) == 0
    assert json.loads((tmp_path / "c.json").read_text())["costs"][0]["seconds_per_image"] > 0

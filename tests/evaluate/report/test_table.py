import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from hapicl.common.errors import UserError
from hapicl.evaluate.report.page import result_page, table_page
from hapicl.evaluate.report.table import comma_separated, gather, markdown
from hapicl.evaluate.result import Outcome, make_result, read_result, run_seeds, write_result

WEIGHTS = {
    "spec": "w.pth",
    "kind": "file",
    "arch": "resnet18",
    "stem": "imagenet",
    "sha256": "0123456789abcdef" * 4,
    "matched": 100,
    "total": 100,
    "method": "densecl",
}


def result(
    values: list[float], *, protocol: str = "seg-probe", kind: str = "file"
) -> tuple[dict[str, Any], Any]:
    given = iter(values)
    outcome = {"per_class": {"a": 0.5, "b": None}, "confusion": [[3, 1], [0, 4]]}
    runs = run_seeds(
        lambda seed: (
            {**WEIGHTS, "kind": kind},
            Outcome(metrics={"miou": next(given)}, curves={"loss": [(1, 2.0), (2, 1.0)]}, **outcome),  # type: ignore[arg-type]
        ),
        runs=len(values),
        seed=4,
    )
    made = make_result(
        task="segment",
        protocol=protocol,
        headline="miou",
        parameters={"steps": 3, "shape": {"head": "c4"}},
        data={"test": {"name": "streets"}},
        runs=runs,
    )
    return made, runs


def test_mean_and_sample_deviation_over_seeds() -> None:
    made, _ = result([0.4, 0.5, 0.6])
    assert made["mean"]["miou"] == pytest.approx(0.5)
    assert made["std"]["miou"] == pytest.approx(0.1)
    assert [run["seed"] for run in made["runs"]] == [4, 5, 6]
    assert result([0.4])[0]["std"]["miou"] is None


def test_a_result_names_everything(tmp_path: Path) -> None:
    made, _ = result([0.25])
    for key in (
        "protocol",
        "parameters",
        "weights",
        "data",
        "code_version",
        "hardware",
        "libraries",
        "created",
    ):
        assert made[key]
    assert made["weights"]["sha256"] == WEIGHTS["sha256"]
    write_result(made, tmp_path / "r.json")
    assert read_result(tmp_path / "r.json") == json.loads(json.dumps(made))


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="not a finite number"):
        result([float("nan")])


def test_markdown(tmp_path: Path) -> None:
    write_result(result([0.4, 0.5, 0.6])[0], tmp_path / "a.json")
    write_result(result([0.2], kind="random")[0], tmp_path / "b.json")
    write_result(result([0.7], protocol="seg-moco-fcn16")[0], tmp_path / "c.json")
    text = markdown(gather([tmp_path / name for name in ("a.json", "b.json", "c.json")]))
    assert text.splitlines() == [
        "| weights | seg-probe streets miou | seg-moco-fcn16 streets miou |",
        "| --- | ---: | ---: |",
        "| random resnet18 | 20.0 (1) | - |",
        "| densecl resnet18 01234567 | 50.0 ± 10.0 (3) | 70.0 (1) |",
    ]


def test_csv_keeps_full_precision(tmp_path: Path) -> None:
    write_result(result([1 / 3])[0], tmp_path / "a.json")
    rows = list(csv.reader(io.StringIO(comma_separated(gather([tmp_path / "a.json"])))))
    assert rows[1] == ["densecl resnet18 01234567", "seg-probe streets miou", str(1 / 3), "", "1"]


def test_two_files_for_one_cell_are_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_result(result([0.4])[0], tmp_path / name)
    with pytest.raises(UserError, match=r"b\.json and .*a\.json both give"):
        gather([tmp_path / "a.json", tmp_path / "b.json"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match="no result file"):
        read_result(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read_result(tmp_path / "x.json")
    with pytest.raises(UserError, match="cannot read"):
        read_result(tmp_path / "y.json")
    made = {**result([0.4])[0], "format": 99}
    write_result(made, tmp_path / "x.json")
    with pytest.raises(UserError, match="format 99"):
        read_result(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("mean", 3),
        ("mean", {"miou": "high"}),
        ("headline", "ap"),
        ("std", {}),
        ("runs", 3),
        ("weights", None),
        ("data", None),
        ("data", {"test": 3}),
    ],
)
def test_a_result_file_that_was_edited_is_refused(tmp_path: Path, part: str, value: object) -> None:
    write_result({**result([0.4])[0], part: value}, tmp_path / "x.json")
    with pytest.raises(UserError, match=r"x\.json: its '.*' is not what `hapicl evaluate` writes"):
        gather([tmp_path / "x.json"])


def test_pages_hold_numbers_and_charts(tmp_path: Path) -> None:
    made, runs = result([0.4, 0.5, 0.6])
    page = result_page(made, runs)
    for text in ("50.00", "10.00", "not in the test set", "seg-probe", "shape.head", "Confusion"):
        assert text in page
    assert page.count("data:image/png") == 2  # curve and confusion
    write_result(made, tmp_path / "a.json")
    assert "data:image/png" in table_page(gather([tmp_path / "a.json"]))

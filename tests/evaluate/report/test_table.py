import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hapicl.cli import command_line
from hapicl.common.errors import UserError
from hapicl.evaluate.report.page import result_page, table_page
from hapicl.evaluate.report.table import ResultTable, comma_separated, gather, markdown
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
    values: list[float],
    *,
    protocol: str = "seg-probe",
    kind: str = "file",
    parameters: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **weights: object,
) -> tuple[dict[str, Any], Any]:
    given = iter(values)
    outcome = {"per_class": {"a": 0.5, "b": None}, "confusion": [[3, 1], [0, 4]]}
    runs = run_seeds(
        lambda seed: (
            {**WEIGHTS, "kind": kind, **({"batchnorm_images": 9} if kind == "random" else {}), **weights},
            Outcome(metrics={"miou": next(given)}, curves={"loss": [(1, 2.0), (2, 1.0)]}, **outcome),  # type: ignore[arg-type]
        ),
        runs=len(values),
        seed=4,
    )
    made = make_result(
        task="segment",
        protocol=protocol,
        headline="miou",
        parameters={"steps": 3, "shape": {"head": "c4"}, **(parameters or {})},
        data={"test": data or {"name": "streets"}},
        image_size=64,
        content="0" * 64,
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
        "| weights (stem) | input, px | seg-probe streets miou | seg-moco-fcn16 streets miou |",
        "| --- | ---: | ---: | ---: |",
        "| random resnet18 (imagenet) | 64 | 20.0 (1) | - |",
        "| densecl resnet18 (imagenet) 01234567 | 64 | 50.0 ± 10.0 (3) | 70.0 (1) |",
    ]


def test_csv_keeps_full_precision(tmp_path: Path) -> None:
    write_result(result([1 / 3])[0], tmp_path / "a.json")
    rows = list(csv.reader(io.StringIO(comma_separated(gather([tmp_path / "a.json"])))))
    assert rows[1] == [
        "densecl resnet18 (imagenet) 01234567",
        "64",
        "seg-probe streets miou",
        str(1 / 3),
        "",
        "1",
    ]


def test_two_files_for_one_cell_are_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_result(result([0.4])[0], tmp_path / name)
    with pytest.raises(UserError, match=r"b\.json and .*a\.json both give"):
        gather([tmp_path / "a.json", tmp_path / "b.json"])


def table_of(tmp_path: Path, *made: tuple[dict[str, Any], Any]) -> ResultTable:
    """A table of results."""
    paths = [tmp_path / f"{number}.json" for number in range(len(made))]
    for path, (content, _) in zip(paths, made, strict=True):
        write_result(content, path)
    return gather(paths)


def test_other_parameters_were_put_into_one_column(tmp_path: Path) -> None:
    # k = 5 at 32 px and k = 20 at 64 px of other weights stood below each other
    table = table_of(
        tmp_path,
        result([0.4], parameters={"k": 5, "image_size": 32}),
        result([0.5], parameters={"k": 20, "image_size": 64}, sha256="f" * 64),
    )
    assert table.columns == (
        "seg-probe streets miou [k 5, image_size 32]",
        "seg-probe streets miou [k 20, image_size 64]",
    )


def test_every_folder_called_test_was_put_into_one_column(tmp_path: Path) -> None:
    one = {"root": "/a/test", "images": 4, "classes": 2, "files": "0123456789"}
    other = {**one, "root": "/b/test", "files": "abcdef0123"}
    moved = {**one, "root": "/elsewhere/test"}
    table = table_of(
        tmp_path,
        result([0.4], data=one),
        result([0.5], data=other),
        result([0.6], data=moved, sha256="f" * 64),
    )
    # the same files at another place are the same data
    assert [column.split(" #")[0] for column in table.columns] == [
        "seg-probe test miou [test /a/test",
        "seg-probe test miou [test /b/test",
    ]
    assert table.cells["densecl resnet18 (imagenet) ffffffff", table.columns[0]].mean == 0.6


def test_stems_that_differ_in_a_column_warn(tmp_path: Path) -> None:
    table = table_of(
        tmp_path,
        result([0.4]),
        result([0.5], stem="no_pool", sha256="f" * 64),
        result([0.5], stem="patch8", arch="vit_tiny_patch16_224", sha256="e" * 64),
    )
    assert len(table.warnings) == 1
    assert "different stems" in table.warnings[0]
    assert "patch8" not in table.warnings[0]  # another kind of network, as its row says
    assert table.warnings[0] in markdown(table)
    assert "different stems" in table_page(table)
    assert table_of(tmp_path, result([0.4]), result([0.5], sha256="f" * 64)).warnings == ()


def test_one_network_with_two_stems_is_two_rows(tmp_path: Path) -> None:
    table = table_of(tmp_path, result([0.4], kind="random"), result([0.5], kind="random", stem="no_pool"))
    assert table.rows == ("random resnet18 (imagenet)", "random resnet18 (no_pool)")


def test_results_written_before_are_read_and_say_what_they_are(tmp_path: Path) -> None:
    # no content, image size or hash of the files; `share` in the weights; a baseline with untouched BatchNorm
    old, _ = result([0.4], kind="random", parameters={"image_size": 48})
    for name in ("content", "image_size"):
        del old[name]
    del old["weights"]["batchnorm_images"]
    old["weights"]["share"] = 1.0
    old["data"] = {"test": {"root": "/a/test", "images": 4, "classes": 2}}
    write_result(old, tmp_path / "old.json")
    table = gather([tmp_path / "old.json"])
    assert table.lines() == [
        ["weights (stem)", "input, px", "seg-probe test miou"],
        ["random-untouched resnet18 (imagenet)", "48", "40.0 (1)"],
    ]


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


@pytest.mark.parametrize("options", [(), ("--format", "csv"), ("--out", "t.md")])
def test_a_warning_of_a_table_on_the_screen_was_told_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = [result([0.4], stem="imagenet"), result([0.5], sha256="f" * 64, stem="no_pool")]
    for name, (content, _) in zip("ab", made, strict=True):
        write_result(content, Path(f"{name}.json"))
    said = CliRunner().invoke(command_line, ["evaluate", "table", "a.json", "b.json", *options])
    assert said.exit_code == 0, said.output
    assert said.output.count("different stems") == 1


def test_pages_hold_numbers_and_charts(tmp_path: Path) -> None:
    made, runs = result([0.4, 0.5, 0.6])
    page = result_page(made, runs)
    for text in ("50.00", "10.00", "not in the test set", "seg-probe", "shape.head", "Confusion"):
        assert text in page
    assert page.count("<svg ") == 2  # curve and confusion
    write_result(made, tmp_path / "a.json")
    assert "<svg " in table_page(gather([tmp_path / "a.json"]))

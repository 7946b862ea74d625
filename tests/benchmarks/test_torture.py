"""The quick form of `make torture`, and proof that it sees what it looks for."""

import json
import pathlib
import subprocess
import sys

import forked
import pytest
import torture
import torture_subjects


@pytest.mark.slow
def test_what_is_killed_ends_in_the_same_bytes(repository, tmp_path):
    few = ["--pretrain", "2", "--pairs", "1", "--settings", "40", "--masks", "2"]
    command = [sys.executable, str(repository / "benchmarks" / "torture.py"), *few]
    command += ["--only", "pretrain", "pairs", "settings", "masks"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "rows.json")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {name: (row["attacks"], row["failures"]) for name, row in rows.items()} == {
        "pretrain": (2, []),
        "pairs": (1, []),
        "settings": (40, []),
        "masks": (2, []),
    }


def test_the_page_has_the_figures_that_were_measured(repository):
    rows = json.loads((repository / "benchmarks" / "results" / "torture.json").read_text(encoding="utf-8"))
    assert torture.page_table(rows) in (repository / "docs" / "survives.md").read_text(encoding="utf-8")


def test_files_in_the_making_and_locks_are_seen(tmp_path):
    for name in ("run/.last.pt.host.1.part", "run/.lock", "masks.h5.parts", "kept.h5"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    found = ["masks.h5.parts", "run/.last.pt.host.1.part", "run/.lock"]
    assert torture_subjects.leftovers(tmp_path) == found


CHILDREN = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
import forked
errors = pathlib.Path(sys.argv[2])
print(forked.run(lambda: sys.exit(75), errors), forked.run(lambda: 1 / 0, errors))
print(forked.finish(forked.start(lambda: time.sleep(60), errors), seconds=0.5))
"""


def test_exit_codes_tracebacks_and_hangs_are_seen(tmp_path):
    where = str(pathlib.Path(forked.__file__).parent)
    command = [sys.executable, "-c", CHILDREN, where, str(tmp_path / "errors")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["75", "1", "None"]
    said = (tmp_path / "errors").read_text()
    assert said.startswith("Traceback")
    assert said.endswith("ZeroDivisionError: division by zero\n")

"""benchmarks/compare.sh gives commands that `hapicl compare` takes."""

import os
import shlex
import subprocess
from pathlib import Path

import click

from hapicl.cli import command_line


def given(words: list[str]) -> dict[str, object]:
    """What a command line means to click; a mistake in it raises."""
    command: click.Command = command_line
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    return command.make_context("hapicl", words).params


def test_the_commands_of_the_real_comparison_are_understood(repository: Path) -> None:
    script = repository / "benchmarks/compare.sh"
    words = ["bash", str(script), "/my sets", "runs/simclr-{seed}", "/h/last.pt", "out", "1.5"]
    run = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HAPICL_COMMAND": "printf %s\\n ---"},
    )
    lines = [part.strip().split("\n") for part in run.stdout.split("---")[1:]]
    assert [line[:2] for line in lines] == [["compare", "segment"]] * 2 + [["compare", "detect"]]
    for line in lines:
        params = given(line)
        starts = ("random", "simclr=runs/simclr-{seed}", "hapicl_s=/h/last.pt")
        assert params["initialisations"] == starts
        assert (params["seeds"], params["budget"]) == (3, 1.5)
        assert str(params["out"]).startswith("out/")
        assert len(str(params["fractions"]).split(",")) == 3
        assert "/my sets" in shlex.join(map(str, params.values()))


def test_without_arguments_it_says_how_it_is_called(repository: Path) -> None:
    run = subprocess.run(
        ["bash", str(repository / "benchmarks/compare.sh")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "benchmarks/compare.sh DATA SIMCLR HAPICL OUT [HOURS]" in run.stdout

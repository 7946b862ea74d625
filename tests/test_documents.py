"""What the pages promise is there: linked files exist, and every command shown has the options shown."""

import importlib
import json
import pathlib
import re
import shlex
import shutil
import textwrap

import click
import pytest
from click.testing import CliRunner

from hapicl.cli import command_line
from hapicl.common.errors import UserError
from hapicl.pretrain.config.recipe_files import load_recipe
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.config.settings import INPUTS, OF_A_START, SESSION, RunSettings, without_effect
from hapicl.pretrain.methods.registry import METHODS

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.fixture
def fidelity(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("make_fidelity")


def test_the_page_of_differences_is_what_the_code_has_now(fidelity):
    assert fidelity.PAGE.read_text(encoding="utf-8") == fidelity.page(), "run: python docs/make_fidelity.py"


def test_the_page_of_differences_has_every_published_method_and_marks_what_differs(fidelity):
    text = fidelity.page()
    for method in set(METHODS) - {"hapicl", "hapicl_vit"}:
        assert f"\n## {method}\n" in text
    assert "| `config.loss` | nce | **infonce** |" in text
    assert "| `config.temperature` | 0.1 | 0.1 |" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = [target for target in LINK.findall(text) if not (page.parent / target).exists()]
    assert missing == []


def shown_commands(text):
    """Lines of code blocks, fenced or indented, that start with `hapicl`; continued lines joined."""
    fenced = False
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            words = re.sub(r"^(\$ )?(\.venv/bin/)?", "", line.strip())
            if words.startswith("hapicl "):
                yield words.removeprefix("hapicl ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shown_commands_have_the_options_shown(page):
    for shown in shown_commands(page.read_text(encoding="utf-8")):
        command, words = command_line, shlex.split(shown, comments=True)
        while isinstance(command, click.Group) and words and not words[0].isupper():
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, f"{page.name}: hapicl {shown}"
            command, words = found, words[1:]
        known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= known, f"{page.name}: hapicl {shown}"


def test_the_commands_of_the_readme_are_seen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sum(1 for _ in shown_commands(text)) >= 3


def test_the_example_in_python_trains_what_its_command_trains(tmp_path, monkeypatch, photo_folder):
    text = (ROOT / "docs/getting-started.md").read_text(encoding="utf-8")
    script = textwrap.dedent(text.split("## In a script")[1].split("\n\n", 2)[2].split("\nIt trains what")[0])
    command = re.search(r"It trains what `hapicl ([^`]+)`", text)
    assert command is not None
    monkeypatch.chdir(tmp_path)
    photo_folder.rename("photos")
    small = {"resnet18", "1000"}
    assert small <= set(re.findall(r"\w+", script))
    assert small <= set(shlex.split(command[1]))
    # two steps of two images instead of a thousand of the recipe's batch: the same change on both sides
    changed = script.replace("1000", "2").replace("resolve(options)", "resolve(options, overrides=OVERRIDES)")
    overrides = ["batch_size=2", "image_size=32", "workers=0"]
    exec(compile(changed, "getting-started.md", "exec"), {"__name__": "__main__", "OVERRIDES": overrides})
    first = json.loads(pathlib.Path("runs/first/config.json").read_text())
    shutil.move("runs/first", "runs/script")
    words = [word.replace("1000", "2") for word in shlex.split(command[1])]
    result = CliRunner().invoke(command_line, [*words, *(f"--set={pair}" for pair in overrides)])
    assert result.exit_code == 0, result.output
    assert json.loads(pathlib.Path("runs/first/config.json").read_text()) == first


@pytest.fixture
def shown_recipe(tmp_path):
    """The recipe that the page on training writes out, as a file."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/training.md").read_text("utf-8"), re.DOTALL)
    path = tmp_path / "my.yaml"
    path.write_text(block, encoding="utf-8")
    return path


def test_the_recipe_on_the_page_states_every_setting_of_a_training(shown_recipe):
    recipe = load_recipe(str(shown_recipe))
    instead = {"limit", "steps"}  # of all images, of epochs
    instead |= {*OF_A_START, "feature_pull_on"}  # of runs that start from weights
    instead |= set(INPUTS)  # of images that are no photographs
    assert recipe.keys() == (RunSettings.model_fields.keys() - SESSION - instead) | {"about"}
    settings, notes = resolve({"masks": "masks.h5"}, recipe=str(shown_recipe))
    assert notes == [f"settings from recipe {shown_recipe}"]
    assert without_effect(settings, recipe, uses_masks=True) == []
    assert (settings.optimizer.weight_decay, settings.use_low_confidence) == (1e-4, True)


def test_messages_about_settings_on_the_page_are_those_given(tmp_path, monkeypatch, shown_recipe):
    text = (ROOT / "docs/training.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    pairs = {"optimizer.base_rl": "1", "optimizer.base_lr": "-1", "precision": "bf61"}
    for key, value in pairs.items():
        with pytest.raises(UserError) as refused:
            resolve({"masks": "masks.h5"}, recipe="my.yaml", overrides=[f"{key}={value}"])
        assert f"    error: {refused.value}\n" in text
    lines = shown_recipe.read_text().splitlines()
    shown_recipe.write_text("\n".join([*lines[:6], "epochs: 3", *lines[6:]]))
    with pytest.raises(UserError) as refused:
        load_recipe("my.yaml")
    assert f"`{refused.value}`" in text

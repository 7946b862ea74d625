"""Settings from recipes, overrides and options: types, near misses, precedence, what has no effect."""

import json
from typing import Annotated, Literal, Self

import pytest
import yaml
from pydantic import Field, model_validator

from hapicl.common.config import Fraction, Settings, build, merge
from hapicl.common.errors import UserError
from hapicl.pretrain.config.recipe_files import FOLDER, default_recipe, load_recipe, recipe_names
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.config.settings import RunSettings, flatten, parse_overrides
from hapicl.pretrain.methods.registry import METHODS, method_class


class Inner(Settings):
    strength: Fraction = 0.5
    scale: tuple[float, float] = (0.2, 1.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.strength > self.scale[1]:
            raise ValueError("strength is over the scale")
        return self


class Outer(Settings):
    inner: Inner = Inner(strength=0.9)
    form: Literal["a", "b"] = "a"
    length: Annotated[int, Field(ge=0)] | None = None
    flag: bool = False


def test_a_nested_mapping_changes_only_what_it_names():
    made = build(Outer, {"inner": {"scale": [0.1, 0.95]}, "length": 3.0})
    assert made == Outer(inner=Inner(strength=0.9, scale=(0.1, 0.95)), length=3)


def test_yamls_text_for_1e_4_becomes_a_number():
    value = yaml.safe_load("1e-4")
    assert isinstance(value, str)  # what YAML 1.1 makes of it
    assert build(Inner, {"strength": value}).strength == 1e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iner": {}}, r"unknown setting 'iner'; did you mean inner\?"),
        ({"inner": {"strenght": 1}}, r"unknown setting 'inner.strenght'; did you mean inner.strength\?"),
        ({"xyz": 1}, "unknown setting 'xyz'; known here: inner, form, length, flag"),
        ({"inner": 3}, "setting inner: takes a mapping of settings, not 3"),
        ({"inner": {1: 2}}, "inner.1: names of settings are text"),
        ({1: 2}, "unknown setting 1; names of settings are text"),
        ({"inner": {"strength": "much"}}, "inner.strength: takes a number, not 'much'"),
        ({"inner": {"strength": None}}, "inner.strength: takes a number, not None"),
        ({"inner": {"strength": True}}, "inner.strength: true and false are flags; give another value"),
        ({"inner": {"strength": float("inf")}}, "inner.strength: takes a finite number"),
        ({"inner": {"strength": 1.5}}, "inner.strength: should be at most 1, not 1.5"),
        ({"inner": {"scale": [0.1, 0.5]}}, "inner: strength is over the scale"),
        ({"inner": {"scale": [1, 2, 3]}}, "inner.scale: takes at most 2 values, not .1, 2, 3"),
        ({"inner": {"scale": [1]}}, "inner.scale.1: a value is missing"),
        ({"inner": {"scale": 0.3}}, r"inner.scale: takes a list such as"),
        ({"form": "c"}, "form: choose 'a' or 'b', not 'c'"),
        ({"length": True}, "length: true and false are flags; give another value"),
        ({"length": 2.5}, "length: takes a whole number"),
        ({"length": 1e20}, "length: is too large"),
        ({"inner": {"strength": 16**10_000}}, "inner.strength: .* not a number of thousands of digits"),
        ({"flag": "yes"}, "flag: give true or false"),
        ({"length": -1}, "length: should be at least 0"),
    ],
)
def test_mistakes_are_named_by_their_place(values, message):
    with pytest.raises(UserError, match=message):
        build(Outer, values)


def test_overrides_are_read_as_yaml_and_nested():
    pairs = ["a.b=0.5", "a.c=[1, 2]", "d=null", "e=text=with=signs"]
    assert parse_overrides(pairs) == {"a": {"b": 0.5, "c": [1, 2]}, "d": None, "e": "text=with=signs"}
    with pytest.raises(UserError, match="--set takes key=value"):
        parse_overrides(["a"])
    with pytest.raises(UserError, match="a was given a value before"):
        parse_overrides(["a=1", "a.b=2"])


def test_merging_and_flattening():
    merged = merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}, "d": {"e": 6}})
    assert merged == {"a": {"b": 5, "c": 2}, "d": {"e": 6}}
    assert dict(flatten(merged)) == {"a.b": 5, "a.c": 2, "d.e": 6}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 3, "steps": 5}, "--epochs or --steps, not both"),
        ({"batch_size": 10, "grad_accum_steps": 3}, "batch_size 10 is no multiple of grad_accum_steps 3"),
        ({"knn_train": "a"}, "needs both --knn-train and --knn-val"),
        ({"steps": 0}, "steps: should be at least 1"),
        ({"optimizer": {"base_lr": -1}}, "setting optimizer.base_lr: should be above 0, not -1"),
    ],
)
def test_settings_that_contradict_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        build(RunSettings, wrong)


def test_options_win_over_set_which_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: simclr\nepochs: 7\nbatch_size: 8\noptimizer: {name: lars, base_lr: 0.3}\n")
    settings, notes = resolve(
        {"images": "x", "batch_size": 32},
        recipe=str(recipe),
        overrides=["batch_size=16", "optimizer.base_lr=0.1"],
    )
    assert (settings.method, settings.batch_size, settings.epochs) == ("simclr", 32, 7)
    assert (settings.optimizer.name, settings.optimizer.base_lr) == ("lars", 0.1)
    assert notes[0] == f"settings from recipe {recipe}"
    assert "--set batch_size has no effect: its option is given too" in notes[1]


def test_steps_on_the_command_line_replace_the_recipes_epochs():
    settings, _ = resolve({"images": "x", "steps": 5}, recipe="simclr_small")
    assert (settings.steps, settings.epochs) == (5, None)


def test_settings_without_effect_are_said():
    _, notes = resolve(
        {"images": "x", "missing_masks": "skip"},
        recipe="simclr_small",
        overrides=[
            "optimizer.betas=[0.9, 0.99]",
            "schedule.gamma=0.5",
            "knn_every=3",
            "use_low_confidence=false",
        ],
    )
    assert [note.removeprefix("warning: ") for note in notes[1:]] == [
        "optimizer.betas has no effect with sgd",
        "schedule.gamma has no effect with the cosine schedule",
        "--missing-masks has no effect: simclr reads no masks",
        "use_low_confidence has no effect: simclr reads no masks",
        "knn_every has no effect without --knn-train and --knn-val",
    ]


def test_the_recipe_follows_the_number_of_images():
    assert [default_recipe("hapicl_m", count) for count in (1_000, 20_000, 500_000)] == [
        "hapicl_m_small",
        "hapicl_m_100k",
        "hapicl_m_imagenet",
    ]
    assert default_recipe("no_such_method", 5) is None


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_complete_and_valid(name):
    content = load_recipe(name)
    settings = build(RunSettings, content)
    build(method_class(settings.method).Config, settings.config, where="config.")
    assert {"paper", "command", "hardware", "expected", "measured"} <= settings.about.keys()
    assert settings.epochs or settings.steps
    assert name in settings.about["command"] or settings.about["command"] == "not run"


def test_every_method_has_a_recipe_for_every_scale():
    missing = [
        f"{name}_{scale}"
        for name in METHODS
        for scale in ("small", "100k", "imagenet")
        if not (FOLDER / f"{name}_{scale}.yaml").exists()
    ]
    assert missing == []


def test_recipes_that_are_not_there_or_not_yaml_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no recipe nowhere.*hapicl_m_small"):
        load_recipe("nowhere")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"is no YAML of settings: .* \(line 1\)") as refused:
        load_recipe(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(refused.value)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="must be a mapping"):
        load_recipe(str(tmp_path / "list.yaml"))


def test_a_run_of_before_1_0_is_refused_in_one_sentence(tmp_path):
    settings = {"method": "simclr", "accumulate": 1, "optimizer": {"lr_per_256": 0.03}}
    config = {"settings": settings, "data": {}, "total_steps": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"config\.json was written by an earlier version.*another --out"
    ) as refused:
        resolve({"images": "x", "out": str(tmp_path), "resume": "auto"})
    assert "\n" not in str(refused.value)

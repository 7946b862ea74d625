"""No value that a user types ends in a traceback: it is refused in one line, or it runs."""

import collections

import fuzz_settings
import pytest

from hapicl.common.errors import UserError
from hapicl.pretrain.config.recipe_files import load_recipe

COUNT = 2 * len(fuzz_settings.every_key())  # each key with any value, and with a likely one


def test_every_value_is_refused_in_one_line_or_runs():
    failures, outcomes = [], collections.Counter()
    for case in fuzz_settings.cases(COUNT):
        try:
            outcomes[fuzz_settings.outcome(case)] += 1
        except Exception as error:  # noqa: BLE001 - what would be a traceback is what this test looks for
            failures.append(f"{case.method} {case.overrides}: {type(error).__name__}: {str(error)[:150]}")
    assert failures == []
    assert min(outcomes["refused"], outcomes["accepted"]) > COUNT / 20  # both are met


def test_every_key_is_met():
    met = {fuzz_settings.names_of(case)[0] for case in fuzz_settings.cases(COUNT)}
    assert met == {key for _, key in fuzz_settings.every_key()}
    assert {"optimizer.trust", "schedule.gamma", "config.photometric.hue", "config.lambda_dense"} <= met


@pytest.mark.parametrize("value", fuzz_settings.VALUES)
def test_a_recipe_with_any_value_is_read_or_refused_in_one_line(tmp_path, value):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"method: simclr\nepochs: {value}\nabout: {{measured: not run}}\n")
    try:
        assert load_recipe(str(recipe))["method"] == "simclr"
    except UserError as error:
        (line,) = str(error).splitlines()
        assert line.startswith(f"recipe {recipe} is no YAML of settings: ")

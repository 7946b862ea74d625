"""A run that sits at the collapse level of its loss is told so in words."""

import pytest

from hapicl.engine.health import health_warnings
from hapicl.pretrain.losses.tokens import collapse_level, cosine_collapse_level

LEVELS = {"released": collapse_level(192, 15.36 / 192), "v1": cosine_collapse_level(15.36)}


@pytest.mark.parametrize("form", ["released", "v1"])
def test_sitting_at_the_collapse_level_is_said_in_words(form: str) -> None:
    level = LEVELS[form]
    values = {"loss/dense": level + 0.002, "dense/target_rank": 1.04, "embedding/std": 0.5}
    (sentence,) = health_warnings(values, {"dense": level}, progress=0.5)
    assert sentence.startswith("collapse: dense sits at its collapse level")
    assert "effective rank is 1.0" in sentence


@pytest.mark.parametrize("form", ["released", "v1"])
def test_a_run_away_from_the_level_or_at_its_start_is_not_warned(form: str) -> None:
    level = LEVELS[form]
    healthy = {"loss/dense": level - 0.1, "dense/target_rank": 30.0}
    assert health_warnings(healthy, {"dense": level}, progress=0.5) == []
    assert health_warnings(healthy | {"loss/dense": level}, {"dense": level}, progress=0.1) == []

"""The YAML of settings: what words mean, and what is refused."""

import math

import pytest

from hapicl.common.plain_yaml import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),  # text in YAML 1.1, which PyYAML reads
        ("010", 10),  # eight in YAML 1.1
        ("12:30", "12:30"),  # 750 in YAML 1.1
        ("2024-01-01", "2024-01-01"),
        ("2024-13-45", "2024-13-45"),  # PyYAML raised "month must be in 1..12"
        ("no", "no"),
        ("true", True),
        ("", None),
        ("~", None),
        ("-.inf", -math.inf),
        ("1e400", math.inf),
        ("{a: {b: [1, 2.5, x]}}", {"a": {"b": [1, 2.5, "x"]}}),
    ],
)
def test_plain_words_are_read_as_yaml_1_2_reads_them(text, value):
    assert read_yaml(text) == value
    assert type(read_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("&a [*a]", r"no aliases \(\*a\); write the value out \(line 1\)"),
        ("a: &b 1\nc: *b", r"no aliases \(\*b\); write the value out \(line 2\)"),
        ("a: 1\nb: 2\na: 3", r"a is given twice \(line 3\)"),
        ("9" * 5000, r"cannot read the value 9+\.\.\. \(line 1\)"),
        ("!!bool maybe", "cannot read the value maybe"),
        ("!!binary aGVs", "tag"),
        ("!!set {a}", "tag"),
        ("!!python/object:os.system {}", "tag"),
        ("[" * 5000, "nested too deeply"),
        ("{[1]: 2}", "unhashable key"),
        ("a: b: c", "not allowed here"),
        ("--- 1\n--- 2", "another document"),
    ],
)
def test_what_is_no_setting_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_yaml(text)
    assert "\n" not in str(refused.value)

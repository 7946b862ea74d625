"""The YAML that settings are written in: text, numbers, flags, lists and mappings, and nothing else.

Plain words are read as YAML 1.2 reads them, so 1e-4 is a number, and 2024-01-01, 12:30 and `no` are text.
Aliases, other tags and a key given twice are refused.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

DEEPEST = 20  # levels; settings have four


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the types above and no others."""

    depth = 0
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as PyYAML declares it; filled below
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, which may hold themselves, and what is nested beyond sense."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            message = f"settings take no aliases (*{event.anchor}); write the value out"
            raise ComposerError(None, None, message, event.start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise ComposerError(None, None, "this is nested too deeply", None)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is given twice: YAML would take the last one."""
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                name = str(key.value)
                if name in seen:
                    raise ConstructorError(None, None, f"{name} is given twice", key.start_mark)
                seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _scalar(kind: Any) -> Any:
    """Make a constructor of PyYAML from what turns text into a value."""

    def construct(loader: _PlainLoader, node: Any) -> Any:
        text = loader.construct_scalar(node)
        try:
            return kind(text)
        except (ValueError, KeyError):
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            raise ConstructorError(None, None, f"cannot read the value {shown}", node.start_mark) from None

    return construct


_FLAGS = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"

_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first, _kind in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    ("bool", "|".join(_FLAGS), list("tTfF"), _FLAGS.__getitem__),
    ("int", r"[-+]?[0-9]+", list("-+0123456789"), int),
    (
        "float",
        f"{_NUMBER}|{_NOT_FINITE}",
        list("-+0123456789."),
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
):
    _PlainLoader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)
    _PlainLoader.add_constructor(_TAG + _name, _scalar(_kind))
_PlainLoader.yaml_constructors |= {
    _TAG + "str": yaml.SafeLoader.construct_yaml_str,
    _TAG + "seq": yaml.SafeLoader.construct_yaml_seq,
    _TAG + "map": yaml.SafeLoader.construct_yaml_map,
    None: yaml.SafeLoader.construct_undefined,
}


def read_yaml(text: str) -> Any:
    """Read settings written in YAML.

    Raises:
        ValueError: for what is no YAML or none of settings; one line that says where.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise ValueError(f"{error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error  # PyYAML's message has several lines

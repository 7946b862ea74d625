"""Settings that users give: one dialect for runs, methods, recipes and protocols, checked here alone.

A class of settings is a frozen pydantic model whose fields carry their bounds. `build` fills one from what
YAML or a command line gives, and says in one line what is wrong with it.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from .errors import UserError, did_you_mean

Built = TypeVar("Built", bound="Settings")

# Numbers that many settings share. The upper bounds only stop what no machine could hold or count.
Positive = Annotated[float, Field(gt=0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**12)]  # of steps or images
CountOrZero = Annotated[int, Field(ge=0, le=10**12)]
Width = Annotated[int, Field(ge=1, le=65_536)]  # of a layer
Depth = Annotated[int, Field(ge=1, le=256)]  # layers

PathText = Annotated[str, Field(pattern=r"^[^\x00\r\n]+$")]


def in_order(pair: tuple[float, float]) -> tuple[float, float]:
    """Check of a range."""
    if not pair[0] <= pair[1]:
        raise ValueError("give the lower bound first")
    return pair


AreaRange = Annotated[  # fractions of an image's area
    tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]], AfterValidator(in_order)
]

# pydantic's words where they speak of Python instead of the user's file
_WORDS = {
    "model_type": "takes a mapping of settings",
    "dict_type": "takes a mapping",
    "int_parsing_size": "is too large",
    "int_type": "takes a whole number",
    "int_parsing": "takes a whole number",
    "int_from_float": "takes a whole number",
    "float_type": "takes a number",
    "float_parsing": "takes a number",
    "finite_number": "takes a finite number",
    "string_type": "takes text; put it in quotes",
    "string_unicode": "takes text in Unicode",
    "tuple_type": "takes a list such as [0.2, 1.0]",
    "missing": "a value is missing",
    "invalid_key": "names of settings are text",
    "greater_than": "should be above {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be below {lt}",
    "less_than_equal": "should be at most {le}",
    "literal_error": "choose {expected}",
    "string_pattern_mismatch": "takes a path of one line",
    "too_long": "takes at most {max_length} values",
}


class Settings(BaseModel):
    """Base of every class of settings: frozen, unknown keys refused, finite numbers only.

    Numbers may be text, since YAML reads 1e-4 as text; true and false are never numbers, and lists are
    tuples. A nested class takes a mapping of the fields that differ from the field's own default.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, use_enum_values=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _take_as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse flags for numbers and numbers for flags; lay a nested mapping over the field's default."""
        assert info.field_name is not None
        field = cls.model_fields[info.field_name]
        wanted = _leaves(field.annotation)
        if bool in wanted and not isinstance(value, bool | None):
            raise ValueError("give true or false")
        if bool not in wanted and _holds_flag(value):
            raise ValueError("true and false are flags; give another value")
        if isinstance(value, Mapping) and isinstance(field.annotation, type):
            default = field.get_default(call_default_factory=True)
            if isinstance(default, Settings):
                return merge(default.model_dump(), value)
        return value

    def replace(self, **changes: Any) -> Self:
        """Return these settings with some fields changed, checked again.

        Raises:
            UserError: for a value that a field refuses.
        """
        return build(type(self), {**dict(self), **changes})


def build(kind: type[Built], values: Mapping[str, Any], *, where: str = "") -> Built:
    """Fill a class of settings from a mapping.

    Args:
        kind: the class.
        values: by field name, nested classes as mappings.
        where: dotted place of these settings, put before the names in messages.

    Raises:
        UserError: names the setting, what it was given and what it takes; for an unknown key the nearest one.
    """
    for key in values:
        if not isinstance(key, str):
            raise UserError(f"unknown setting {where}{key!r}; names of settings are text")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_sentence(error.errors(include_url=False)[0], kind, where)) from None


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the second nested mapping over the first."""
    merged = dict(first)
    for key, value in second.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _sentence(detail: ErrorDetails, kind: type[Settings], where: str) -> str:
    """One line for the first thing that is wrong."""
    names = [str(part) for part in detail["loc"] if not str(part).startswith("function-")]
    place = where + ".".join(names)
    if detail["type"] == "extra_forbidden":
        *parents, last = names
        known = list(_class_at(kind, parents).model_fields)
        prefix = where + "".join(f"{parent}." for parent in parents)
        hint = did_you_mean(last, known, prefix=prefix) or f"; known here: {', '.join(known)}"
        return f"unknown setting {place!r}{hint}"
    if detail["type"] in _WORDS:
        bounds = {key: _plain(value) for key, value in detail.get("ctx", {}).items()}
        reason = _WORDS[detail["type"]].format(**bounds)
    else:
        reason = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = _shortened(detail["input"])
    if not names or given is None:  # a check of several fields together names them itself
        return f"{place.rstrip('.')}: {reason}" if place else reason
    return f"setting {place}: {reason}, not {given}"


def _plain(bound: Any) -> Any:
    """1 rather than 1.0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _shortened(value: Any) -> str | None:
    """A value as a user wrote it, in one line; None for a whole class of settings."""
    if isinstance(value, Settings):
        return None
    try:
        given = repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return "a number of thousands of digits"
    return given if len(given) <= 80 else given[:77] + "..."


def _class_at(kind: type[Settings], parents: list[str]) -> type[Settings]:
    """The class of settings that a dotted place leads to."""
    for name in parents:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        found = [part for part in _parts(inner) if isinstance(part, type) and issubclass(part, Settings)]
        if not found:
            break
        kind = found[0]
    return kind


def _parts(annotation: Any) -> list[Any]:
    """A type and all types inside it."""
    inside = [part for argument in typing.get_args(annotation) for part in _parts(argument)]
    return [annotation, *inside]


def _leaves(annotation: Any) -> set[Any]:
    """Which of the plain types a field may hold."""
    found = {part for part in _parts(annotation) if isinstance(part, type)}
    return found & {bool, int, float, str, dict} | ({Any} if annotation is Any else set())


def _holds_flag(value: Any) -> bool:
    """Whether true or false stands in a value, also inside a list."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_flag, value)))

"""Checks of protocols: a parameter that cannot be is refused before anything is read or computed.

They raise ValueError, as a dataclass does; `pretrain.settings.build` turns it into the user's line.
"""

from __future__ import annotations

from typing import Any


def positive(protocol: Any, *names: str) -> None:
    """Refuse 0 and less in the named fields; a tuple must hold at least one number, all above 0."""
    for name in names:
        value = getattr(protocol, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(number > 0 for number in numbers):
            wanted = "hold numbers above 0" if isinstance(value, tuple) else "be above 0"
            raise ValueError(f"{name} must {wanted}, not {_shown(value)}")


def not_negative(protocol: Any, *names: str) -> None:
    """Refuse less than 0 in the named fields."""
    for name in names:
        value = getattr(protocol, name)
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {_shown(value)}")


def _shown(value: Any) -> str:
    """The value as a user writes it."""
    return str(list(value)) if isinstance(value, tuple) else str(value)

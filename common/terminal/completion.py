"""Shell completion of option values: names are fetched only when a shell asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click


def completing(names: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """Complete an option's value from a list of names.

    Args:
        names: gives them; called when a shell asks, so it may import what it needs.

    Returns:
        What click takes as `shell_complete`.
    """

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
        return sorted(name for name in names() if name.startswith(begun))

    return complete

"""Rows of `hapicl methods`: what each method is and needs."""

from __future__ import annotations

from .methods.registry import METHODS, method_class


def method_rows() -> list[tuple[str, str, str]]:
    """Give name, needs and source of every method."""
    rows = []
    for name in sorted(METHODS):
        kind = method_class(name)
        needs = kind.needs(kind.Config(), image_size=224, grid=7)
        words = [f"{len(needs.views)} view{'s' if len(needs.views) != 1 else ''}"]
        words += ["masks"] if needs.masks else []
        words += ["jigsaw patches"] if needs.jigsaw else []
        rows.append((name, ", ".join(words), kind.source))
    return rows

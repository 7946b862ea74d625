"""What is printed: text as it is, whatever stands in a file's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def printable(text: str) -> str:
    r"""Return text that any page or stream can hold: bytes of a name that are not UTF-8 become `\udc..`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable_name(name: str) -> str:
    r"""Return a file's name as one line of plain text: line breaks and colours become `\n`, `\x1b`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in name
    )


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a rich console on which brackets are no markup, `:x:` is no emoji and numbers get no colour.

    A folder may be called `[red]`, `a[/b]` or `:smile:`.
    """
    from rich.console import Console  # here, for `hapicl --help`

    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)

"""The one exception for what a user can mend, and the nearest name for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in input, files or settings; the message names the path or option and the next step.

    The command line prints the message alone and exits with code 2. Anything else that escapes is a bug and
    keeps its traceback.
    """


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """End a message with the nearest known name, "; did you mean resnet18?", or with nothing if none is near.

    Args:
        name: what was typed.
        known: what there is.
        prefix: put before the name that is offered, such as the dotted place of a setting.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""

"""How this room's kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], *, fastmath: set[str] | bool = False) -> Any:
    """Compile a function at its first call, and keep the machine code on disk where one may write.

    Args:
        function: what to compile.
        fastmath: liberties with floating point, as numba names them; none by default, then the result is
            numpy's to the last bit.
    """
    try:
        return numba.njit(cache=True, nogil=True, fastmath=fastmath)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        # numba found no folder for its cache: every process compiles anew
        return numba.njit(nogil=True, fastmath=fastmath)(function)

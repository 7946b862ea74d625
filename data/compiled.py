"""How kernels are compiled, here and in the other rooms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(
    function: Callable[..., Any], *, signature: str | None = None, fastmath: set[str] | bool = False
) -> Any:
    """Compile a function, and keep the machine code on disk.

    numba keeps it beside the module or, where that folder cannot be written, in the user's cache folder;
    where neither can be written every process compiles anew, some seconds.

    Args:
        function: what to compile.
        signature: numba's, to compile for it at once; None compiles at the first call, for its arguments.
        fastmath: liberties with floating point, as numba names them; none by default, then the result is
            numpy's to the last bit.
    """
    try:
        return numba.njit(signature, cache=True, nogil=True, fastmath=fastmath)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return numba.njit(signature, nogil=True, fastmath=fastmath)(function)

"""How the per-pixel kernels of this room are compiled."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a kernel for one signature when its module is imported, and keep the machine code on disk.

    One typed signature per kernel: nothing is compiled a second time for another array layout in the middle
    of a build. numba keeps the machine code beside the module or, where that folder cannot be written, in the
    user's cache folder; where neither can be written it is compiled anew in each process, some seconds.

    Args:
        signature: numba's signature, for instance "float32[:, ::1](float32[:, ::1], int64)".
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            kernel: Callable[..., Any] = numba.njit(signature, cache=True, nogil=True)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            kernel = numba.njit(signature, nogil=True)(function)
        return kernel

    return decorate

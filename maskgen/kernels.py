"""How the per-pixel kernels of this room are compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..data import compiled as compilation


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a kernel for one signature when its module is imported, and keep the machine code on disk.

    One typed signature per kernel: nothing is compiled a second time for another array layout in the middle
    of a build.

    Args:
        signature: numba's signature, for instance "float32[:, ::1](float32[:, ::1], int64)".
    """
    return partial(compilation.compiled, signature=signature)

"""How kernels are compiled: one decorator for every room."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba

ANNOUNCED = "HAPICL_COMPILING_ANNOUNCED"  # set for child processes, which say nothing
logger = logging.getLogger("hapicl.common")


def jit(function_or_signature: Callable[..., Any] | str) -> Any:
    """Compile a function, and keep the machine code on disk.

    `@jit` compiles at the first call, for its arguments. `@jit("float32[::1](float32[::1])")` compiles for
    one signature when the module is imported, so nothing is compiled again in the middle of a build for
    another array layout. The result is numpy's to the last bit: no liberties with floating point.

    numba keeps the machine code beside the module or, where that folder cannot be written, in the user's
    cache folder; where neither can be written every process compiles anew, some seconds.

    Args:
        function_or_signature: what to compile, or numba's signature of what is decorated.
    """
    if isinstance(function_or_signature, str):
        return partial(_compile, signature=function_or_signature)
    return _compile(function_or_signature)


def _compile(function: Callable[..., Any], signature: str | None = None) -> Any:
    """Compile, with a cache where there is a folder for it."""
    try:
        dispatcher = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        dispatcher = numba.njit(nogil=True)(function)
    if signature is not None:  # as numba's own decorator does with a signature
        if not is_compiled(dispatcher):
            announce_compilation()
        dispatcher.compile(signature)
        dispatcher.disable_compile()
    return dispatcher


def announce_compilation() -> None:
    """Say once that kernels are compiled, which a user would take for a standstill."""
    if ANNOUNCED not in os.environ:
        os.environ[ANNOUNCED] = "1"
        logger.warning("compiling kernels, once: up to half a minute")


def is_compiled(function: Any) -> bool:
    """Tell whether a function of `@jit` has its machine code already, in this process or on disk.

    On disk it must be newer than the function's file, since numba compiles again what has changed.
    """
    if function.signatures:
        return True
    folder, code = function.stats.cache_path, function.py_func.__code__
    if folder is None:  # no folder can be written: every process compiles
        return False
    name = f"{function.py_func.__module__.split('.')[-1]}.{function.py_func.__qualname__}"
    written = Path(code.co_filename).stat().st_mtime
    kept = Path(folder).glob(f"{name}-{code.co_firstlineno}.*nbi")
    return any(index.stat().st_mtime >= written for index in kept)

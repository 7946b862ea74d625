"""Keeping the codecs' own complaints off a user's screen: what matters of them is in an `ImageError`."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_lock = threading.Lock()
_inside = 0  # threads that are decoding now
_screen: int | None = None  # where descriptor 2 goes otherwise, while it is turned away


@contextmanager
def quiet_codecs() -> Iterator[None]:
    """Turn descriptor 2 away while a codec runs: libjpeg, libpng and OpenCV's log write there.

    It is the whole process's, so what another thread writes to it meanwhile is lost too: wrap a single call.
    """
    _turn_away()
    try:
        yield
    finally:
        _turn_back()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Leave out Pillow's warnings, about damaged EXIF data for one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _turn_away() -> None:
    """Let descriptor 2 lead to nowhere, from the first thread that asks."""
    global _inside, _screen
    with _lock:
        _inside += 1
        if _inside == 1:
            with suppress(OSError):  # a process without descriptor 2 prints nothing
                _screen = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)


def _turn_back() -> None:
    """Let descriptor 2 lead to where it led, when the last thread is done."""
    global _inside, _screen
    with _lock:
        _inside -= 1
        if _inside == 0 and _screen is not None:
            os.dup2(_screen, 2)
            os.close(_screen)
            _screen = None

"""What a backbone is worth on labelled images, and its weights for other toolkits.

    result = hapicl.evaluate.knn("runs/first", train="labelled/train", test="labelled/val")
    result["mean"]["top1"]

`knn`, `linear`, `semi`, `svm`, `segment` and `detect` are `functions.py`, imported with the first name that
is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .functions import detect, knn, linear, segment, semi, svm

__all__ = ["detect", "knn", "linear", "segment", "semi", "svm"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".functions", __name__), name)


def __dir__() -> list[str]:
    """Name what there is, for completion."""
    return sorted({*globals(), *__all__})

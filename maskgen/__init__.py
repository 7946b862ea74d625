"""Stage one: the foreground of an image without labels.

    from hapicl.maskgen import foreground
    mask = foreground(image)        # (H, W, 3) uint8 RGB -> (H, W) bool

Importing this package is light; the kernels load with the first name that needs them. (The functions live in
`pipeline.py`: a module called `foreground` would hide the function of that name.)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Foreground, foreground, segment
    from .recipes import RECIPES, MaskRecipe

__all__ = ["RECIPES", "Foreground", "MaskRecipe", "foreground", "segment"]

_HOME = {
    "Foreground": "pipeline",
    "foreground": "pipeline",
    "segment": "pipeline",
    "RECIPES": "recipes",
    "MaskRecipe": "recipes",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)

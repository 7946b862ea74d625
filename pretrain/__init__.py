"""Stage two: methods, their losses and modules, the run around them.

The package is called like the function that one wants of it, and may be called like it too:
`hapicl.pretrain(settings)` is `hapicl.pretrain.train.pretrain(settings)`.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config.settings import RunSettings
    from .train import RunResult


class _Callable(types.ModuleType):
    """A package that is called like its function; Python lets a module choose its class for such ends."""

    def __call__(self, settings: RunSettings, *, show: bool = True) -> RunResult:
        """Train a backbone; see `train.pretrain`."""
        from .train import pretrain

        return pretrain(settings, show=show)


sys.modules[__name__].__class__ = _Callable

"""hapicl: pretraining that makes backbones good at dense vision tasks, from unlabelled photographs.

    import hapicl

    mask = hapicl.foreground(image)                      # (H, W, 3) uint8 -> (H, W) bool
    hapicl.build_masks("photos", "masks.h5")
    settings, notes = hapicl.resolve({"masks": "masks.h5", "out": "runs/first"})
    hapicl.pretrain(settings)
    backbone, info = hapicl.load_backbone("runs/first")

Importing this is light: a name brings what it needs when it is first asked for. The functions that do not
stand here are in the rooms (`hapicl.data`, `hapicl.maskgen`, ...), see the reference.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import evaluate
    from .common.errors import UserError
    from .data.masks.reader import MaskReader
    from .evaluate.embedding.embed import embed
    from .evaluate.functions import compare
    from .maskgen.building.build import build_masks
    from .maskgen.pipeline import foreground, segment
    from .models.weights import load_backbone
    from .pretrain.config.resolve import resolve
    from .pretrain.config.settings import RunSettings
    from .pretrain.train import pretrain

__all__ = [
    "MaskReader",
    "RunSettings",
    "UserError",
    "build_masks",
    "compare",
    "embed",
    "evaluate",
    "foreground",
    "load_backbone",
    "pretrain",
    "resolve",
    "segment",
]

# name -> module that has it; a room that is not there is a name itself
_HOME = {
    "MaskReader": "data.masks.reader",
    "RunSettings": "pretrain.config.settings",
    "UserError": "common.errors",
    "build_masks": "maskgen.building.build",
    "compare": "evaluate.functions",
    "embed": "evaluate.embedding.embed",
    "foreground": "maskgen.pipeline",
    "load_backbone": "models.weights",
    "resolve": "pretrain.config.resolve",
    "segment": "maskgen.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name in ("evaluate", "pretrain"):  # rooms; `pretrain` may be called
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    """Name what there is, for completion."""
    return sorted({*globals(), *__all__})

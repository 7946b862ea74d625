"""The methods by name: one row each. Importing this file imports no method."""

from __future__ import annotations

import importlib

from ...common.errors import UserError
from .base import Method

# name -> (module beside this file, class)
METHODS = {
    "hapicl": ("hapicl", "Hapicl"),
    "hapicl_s": ("hapicl_s", "HapiclS"),
    "hapicl_m": ("hapicl_m", "HapiclM"),
    "simclr": ("simclr", "Simclr"),
    "moco_v2": ("moco_v2", "MocoV2"),
    "rotation": ("rotation", "Rotation"),
    "jigsaw": ("jigsaw", "Jigsaw"),
    "npid": ("npid", "Npid"),
    "pirl": ("pirl", "Pirl"),
    "densecl": ("densecl", "Densecl"),
    "harl": ("harl", "Harl"),
    "byol": ("byol", "Byol"),
    "siameseim": ("siameseim", "SiameseIM"),
    "mae": ("mae", "Mae"),
    "moco_v3": ("moco_v3", "MocoV3"),
    "hapicl_vit": ("hapicl_vit", "HapiclVit"),
}


def method_class(name: str) -> type[Method]:
    """Import and return the class of a method.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; choose one of {', '.join(sorted(METHODS))}")
    module, attribute = METHODS[name]
    found: type[Method] = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return found


def method_rows() -> list[tuple[str, str, str]]:
    """Give name, needs and source of every method."""
    rows = []
    for name in sorted(METHODS):
        kind = method_class(name)
        needs = kind.needs(kind.Config(), image_size=224, grid=7)
        words = [f"{len(needs.views)} view{'s' if len(needs.views) != 1 else ''}"]
        words += ["masks"] if needs.masks else []
        words += ["jigsaw patches"] if needs.jigsaw else []
        rows.append((name, ", ".join(words), kind.source))
    return rows

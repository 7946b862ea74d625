"""The methods by name: one row each. Importing this file imports no method."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ...common.errors import UserError, did_you_mean

if TYPE_CHECKING:  # names alone must not cost torch's two seconds: shells complete them
    from ...models.backbones.base import Backbone
    from .base import Method

CELLS = 4  # per side of the map that pixel and dense terms read, at least
# name -> (module beside this file, class, which backbones fit)
METHODS: dict[str, tuple[str, str, str]] = {
    "hapicl": ("hapicl", "HAPiCL", "maps"),
    "hapicl_s": ("hapicl_s", "HAPiCLS", "maps"),
    "hapicl_m": ("hapicl_m", "HAPiCLM", "maps"),
    "simclr": ("simclr", "SimCLR", "any"),
    "moco_v2": ("moco_v2", "MoCoV2", "any"),
    "rotation": ("rotation", "Rotation", "any"),
    "jigsaw": ("jigsaw", "Jigsaw", "any"),
    "npid": ("npid", "NPID", "any"),
    "pirl": ("pirl", "PIRL", "any"),
    "densecl": ("densecl", "DenseCL", "maps"),
    "harl": ("harl", "HARL", "maps"),
    "byol": ("byol", "BYOL", "any"),
    "siameseim": ("siameseim", "SiameseIM", "tokens"),
    "mae": ("mae", "MAE", "tokens"),
    "moco_v3": ("moco_v3", "MoCoV3", "any"),
    "hapicl_vit": ("hapicl_vit", "HAPiCLViT", "maps"),
}


FITS = {"any": "any", "maps": f"{CELLS} x {CELLS} cells", "tokens": "plain ViT"}  # in the table


def method_class(name: str) -> type[Method]:
    """Import and return the class of a method.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    if name not in METHODS:
        hint = did_you_mean(name, METHODS) or "; choose one of " + ", ".join(sorted(METHODS))
        raise UserError(f"unknown method {name!r}{hint}")
    module, attribute, _ = METHODS[name]
    found: type[Method] = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return found


def check_fit(name: str, backbone: Backbone, *, image_size: int, grid: int | None = None) -> None:
    """Refuse a backbone that gives a method too little.

    Args:
        name: the method's.
        backbone: what it would train.
        image_size: side of the views, pixels.
        grid: cells per side that the method reads; None: those of the last map.

    Raises:
        UserError: says what is missing and how to get it.
    """
    fit = METHODS[name][2]
    if fit == "tokens":
        from ...models.backbones.vit import require_vit

        require_vit(backbone, name)
    cells = grid or backbone.cells_per_side(image_size)
    if fit == "maps" and cells < CELLS:
        raise UserError(
            f"{name} needs a map of {CELLS} x {CELLS} cells, and this backbone (stem {backbone.stem}) gives "
            f"{cells} x {cells} of images of {image_size} pixels; use larger images, or --set stem=auto"
        )


def method_rows() -> list[tuple[str, str, str, str]]:
    """Give name, needs, fitting backbones and source of every method."""
    import torch

    from ...models.backbones.build import build_backbone

    with torch.device("meta"):
        backbone = build_backbone("resnet18", image_size=224)
    rows = []
    for name in sorted(METHODS):
        kind = method_class(name)
        needs = kind.needs(kind.Config(), backbone, image_size=224)
        words = [f"{len(needs.views)} view{'s' if len(needs.views) != 1 else ''}"]
        words += ["masks"] if needs.masks else []
        words += ["jigsaw patches"] if needs.jigsaw else []
        rows.append((name, ", ".join(words), FITS[METHODS[name][2]], kind.source))
    return rows

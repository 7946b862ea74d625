"""The methods by name: one row each. Importing this file imports no method."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ...common.errors import UserError, did_you_mean

if TYPE_CHECKING:  # names alone must not cost torch's two seconds: shells complete them
    from .base import Method

# name -> (module beside this file, class)
METHODS = {
    "hapicl": ("hapicl", "HAPiCL"),
    "hapicl_s": ("hapicl_s", "HAPiCLS"),
    "hapicl_m": ("hapicl_m", "HAPiCLM"),
    "simclr": ("simclr", "SimCLR"),
    "moco_v2": ("moco_v2", "MoCoV2"),
    "rotation": ("rotation", "Rotation"),
    "jigsaw": ("jigsaw", "Jigsaw"),
    "npid": ("npid", "NPID"),
    "pirl": ("pirl", "PIRL"),
    "densecl": ("densecl", "DenseCL"),
    "harl": ("harl", "HARL"),
    "byol": ("byol", "BYOL"),
    "siameseim": ("siameseim", "SiameseIM"),
    "mae": ("mae", "MAE"),
    "moco_v3": ("moco_v3", "MoCoV3"),
    "hapicl_vit": ("hapicl_vit", "HAPiCLViT"),
}


def method_class(name: str) -> type[Method]:
    """Import and return the class of a method.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    if name not in METHODS:
        hint = did_you_mean(name, METHODS) or "; choose one of " + ", ".join(sorted(METHODS))
        raise UserError(f"unknown method {name!r}{hint}")
    module, attribute = METHODS[name]
    found: type[Method] = getattr(importlib.import_module(f".{module}", __package__), attribute)
    return found


def method_rows() -> list[tuple[str, str, str]]:
    """Give name, needs and source of every method."""
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
        rows.append((name, ", ".join(words), kind.source))
    return rows

"""Recipes: one YAML file each, with the keys of `pretrain.settings.RunSettings` and `about`.

`hapicl pretrain` without `--recipe` takes `<method>_small` under 20,000 images, `<method>_100k` under
500,000 and `<method>_imagenet` above, where that file exists. `<method>_continue`, by name only, is for runs
that start from weights. Example:

    about: {paper: "arXiv 2003.04297", command: "hapicl pretrain ...", hardware: "...", expected: "...",
            measured: not run}
    method: moco_v2
    arch: resnet50
    stem: imagenet
    image_size: 224
    epochs: 200
    batch_size: 256
    optimizer: {name: sgd, base_lr: 0.03, momentum: 0.9, weight_decay: 1.0e-4}
    schedule: {name: cosine, warmup_epochs: 0}
    config: {queue_length: 65536, temperature: 0.2}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.errors import UserError, did_you_mean
from ...common.plain_yaml import read_yaml

FOLDER = Path(__file__).parents[1] / "recipes"
CONTINUE = "_continue"  # how recipes end that start from weights
SMALL, MEDIUM = 20_000, 500_000  # images below which the small and the 100k recipes serve


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> dict[str, Any]:
    """Read a shipped recipe by name, or a file by path.

    Raises:
        UserError: if there is none, or it is not a YAML mapping; names the path and the known names.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(
            f"there is no recipe {name}{did_you_mean(name, recipe_names())}; give a .yaml file or one of "
            f"{', '.join(recipe_names())}"
        ) from error
    except (PermissionError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}; give a YAML file in UTF-8") from error
    try:
        content = read_yaml(text)
    except ValueError as error:
        raise UserError(f"recipe {path} is no YAML of settings: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"recipe {path} must be a mapping of settings, see `hapicl pretrain --help`")
    return content


def default_recipe(method: str, images: int) -> str | None:
    """Name the shipped recipe of a method for a data set of this many images; None if there is none."""
    scale = "small" if images < SMALL else "100k" if images < MEDIUM else "imagenet"
    name = f"{method}_{scale}"
    return name if name in recipe_names() else None

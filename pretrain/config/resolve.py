"""From recipe, `--set` and options to `RunSettings`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.config import build, merge
from ...common.errors import UserError
from ...engine.loggers.run_files import CONFIG, read_config
from ...models.backbones.build import build_backbone
from ...models.weights import describe_weights
from ..methods.registry import check_fit, method_class
from .recipe_files import CONTINUE, default_recipe, load_recipe, recipe_names
from .settings import INPUTS, OF_A_START, RunSettings, Start, parse_overrides, without_effect

TOLD = ("arch", "stem", *INPUTS)  # what weights say of themselves


def resolve(
    options: dict[str, Any], *, recipe: str | None = None, overrides: Sequence[str] = ()
) -> tuple[RunSettings, list[str]]:
    """Lay defaults, recipe, `--set` and options over each other; later ones win.

    A run that is resumed starts from its own config.json instead of a recipe.

    Args:
        options: of the command line, by setting name, only those given.
        recipe: name or file.
        overrides: `key=value` pairs.

    Returns:
        The settings, and what to tell the user about them.

    Raises:
        UserError: for unknown settings, recipes or methods.

    Examples:
        >>> settings, notes = resolve({"masks": "masks.h5", "steps": 100})
        >>> settings.method, settings.steps, notes
        ('hapicl_m', 100, ['settings from recipe hapicl_m_small'])
    """
    notes: list[str] = []
    overridden = parse_overrides(overrides)
    stated = merge(overridden, options)
    base, origin = _base(stated, recipe)
    if origin:
        notes.append(f"settings from {origin}")
    both = {"epochs", "steps"}
    if both & stated.keys():  # one given on top replaces the other below
        base = {key: value for key, value in base.items() if key not in both}
    if not origin.endswith(CONFIG):  # a run that goes on has its backbone in its config.json
        base, told = _as_the_weights_say(base, stated)
        notes += told + _better_recipe(base, stated, recipe)
    settings = build(RunSettings, merge(base, stated))
    _check_start(settings, recipe)
    kind = method_class(settings.method)
    config = build(kind.Config, settings.config, where="config.")
    with torch.device("meta"):  # its shapes, without its weights
        backbone = build_backbone(
            settings.arch, image_size=settings.image_size, stem=settings.stem, inputs=settings.inputs
        )
    needs = kind.needs(config, backbone, image_size=settings.image_size)
    check_fit(settings.method, backbone, image_size=settings.image_size, grid=needs.grid)
    _check_data(settings, masks=needs.masks)
    notes += [
        f"warning: --set {name} has no effect: its option is given too, and wins"
        for name in sorted(overridden.keys() & options.keys())
    ]
    notes += [f"warning: {line}" for line in without_effect(settings, stated, uses_masks=needs.masks)]
    return settings, notes


def _check_data(settings: RunSettings, *, masks: bool) -> None:
    """Refuse a run without images, or without the masks that its method reads."""
    if settings.masks is None and (masks or settings.images is None):
        raise UserError(
            f"{settings.method} needs masks: give --masks FILE (made by `hapicl masks build --images DIR`)"
            if masks
            else "no images: give --images DIR, or --masks FILE"
        )


def _better_recipe(base: dict[str, Any], stated: dict[str, Any], recipe: str | None) -> list[str]:
    """Name the recipe for a start from weights where the size of the data chose another."""
    name = f"{stated.get('method', Start().method)}{CONTINUE}"
    if recipe is not None or not merge(base, stated).get("weights") or name not in recipe_names():
        return []
    return [f"this recipe is for random weights; --recipe {name} is for a start from weights"]


def _check_start(settings: RunSettings, recipe: str | None) -> None:
    """Refuse what only serves a run that starts from weights, where it starts from none."""
    if settings.weights is not None:
        return
    given = [name for name in OF_A_START if getattr(settings, name) is not None]
    continued = recipe is not None and recipe.endswith(CONTINUE)
    if given or continued:
        subject = f"recipe {recipe}" if continued else ", ".join(given)
        raise UserError(
            f"{subject}: there are no weights to start from; give --weights FILE, RUN_FOLDER, "
            "torchvision:NAME or timm:NAME"
        )


def _as_the_weights_say(base: dict[str, Any], stated: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Let the weights to start from choose the backbone's name and stem, where the user states none.

    Weights of other images than photographs also choose how images are read.

    Args:
        base: of the recipe.
        stated: by the user.

    Returns:
        The base with what the weights say of themselves, and a sentence if that changed it.
    """
    weights = merge(base, stated).get("weights")
    if not isinstance(weights, str) or set(TOLD) <= stated.keys():
        return base, []
    known = describe_weights(weights)
    if "arch" in stated and known.get("arch") != stated["arch"]:
        return base, []
    same = stated.get("in_channels") in (None, known.get("in_channels"))
    names = TOLD if same else ("arch", "stem")
    chosen = {name: known[name] for name in names if name in known and name not in stated}
    if all(base.get(name) == value for name, value in chosen.items()):
        return base, []
    words = ", ".join(f"{name} {value}" for name, value in chosen.items() if name not in ("mean", "std"))
    return base | chosen, [f"{words}, as the weights say"]


def _base(stated: dict[str, Any], recipe: str | None) -> tuple[dict[str, Any], str]:
    """What the settings start from, and its name for the user."""
    start = build(Start, {name: value for name, value in stated.items() if name in Start.model_fields})
    folder = _resumed_folder(start)
    if folder is not None:
        settings = _resumed_settings(folder)
        if recipe is not None:
            raise UserError(f"--recipe cannot change a resumed run; {folder / CONFIG} holds its settings")
        if "method" in stated and start.method != settings["method"]:
            raise UserError(
                f"{folder} is a run of {settings['method']}, not {start.method}; choose another --out"
            )
        return settings | {"out": str(folder)}, str(folder / CONFIG)
    if recipe is not None:
        return load_recipe(recipe), f"recipe {recipe}"
    method_class(start.method)
    name = default_recipe(start.method, _count_images(start))
    return ({} if name is None else load_recipe(name)), "" if name is None else f"recipe {name}"


def _resumed_folder(start: Start) -> Path | None:
    """Folder of the run that `resume` names, if it is there."""
    if start.resume is None:
        return None
    if start.resume == "auto":
        if start.out is None:
            raise UserError("--resume auto needs --out: the run folder to continue")
        folder = Path(start.out)
        return folder if (folder / CONFIG).exists() else None
    given = Path(start.resume)
    folder = given if given.is_dir() else given.parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    if not (folder / CONFIG).exists():
        raise UserError(f"--resume {start.resume}: there is no run in {folder} (no {CONFIG})")
    return folder


def _resumed_settings(folder: Path) -> dict[str, Any]:
    """Settings of a run, without what belonged to the session before."""
    settings: dict[str, Any] = read_config(folder)["settings"]
    for name in ("resume", "stop_after", "profile", "device", "workers"):
        settings.pop(name, None)
    return settings


def _count_images(start: Start) -> int:
    """Images of the data set, to choose a recipe; 0 where nothing says."""
    if start.limit is not None:
        return start.limit
    if start.masks is not None:
        from ...data.masks.reader import MaskReader

        return len(MaskReader(start.masks))
    if start.images is not None:
        from ...data.images import open_images

        return len(open_images(start.images).paths())
    return 0

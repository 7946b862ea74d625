"""From recipe, `--set` and options to `RunSettings`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...engine.run_logger import CONFIG, read_config
from ..methods.registry import method_class
from .recipe_files import default_recipe, load_recipe
from .settings import RunSettings, build, merge, parse_overrides, without_effect

DEFAULT_METHOD = "hapicl_m"


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
    given = merge(base, stated)
    settings = build(RunSettings, given)
    kind = method_class(settings.method)
    config = build(kind.Config, settings.config, where="config.")
    needs = kind.needs(config, image_size=settings.image_size, grid=7)
    if settings.masks is None and (needs.masks or settings.images is None):
        raise UserError(
            f"{settings.method} needs masks: give --masks FILE (made by `hapicl masks build --images DIR`)"
            if needs.masks
            else "no images: give --images DIR, or --masks FILE"
        )
    notes += [
        f"warning: --set {name} has no effect: its option is given too, and wins"
        for name in sorted(overridden.keys() & options.keys())
    ]
    notes += [f"warning: {line}" for line in without_effect(settings, stated, uses_masks=needs.masks)]
    return settings, notes


def _base(stated: dict[str, Any], recipe: str | None) -> tuple[dict[str, Any], str]:
    """What the settings start from, and its name for the user."""
    resumed = _resumed_config(stated)
    if resumed is not None:
        folder, settings = resumed
        if recipe is not None:
            raise UserError(f"--recipe cannot change a resumed run; {folder / CONFIG} holds its settings")
        if stated.get("method", settings["method"]) != settings["method"]:
            raise UserError(
                f"{folder} is a run of {settings['method']}, not {stated['method']}; choose another --out"
            )
        return settings | {"out": str(folder)}, str(folder / CONFIG)
    if recipe is not None:
        content = load_recipe(recipe)
        return content, f"recipe {recipe}"
    method = str(stated.get("method", DEFAULT_METHOD))
    method_class(method)
    name = default_recipe(method, _count_images(stated))
    return ({} if name is None else load_recipe(name)), "" if name is None else f"recipe {name}"


def _resumed_config(stated: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Folder and settings of the run that `resume` names, if it is there."""
    resume = stated.get("resume")
    if resume is None:
        return None
    if resume == "auto":
        if "out" not in stated:
            raise UserError("--resume auto needs --out: the run folder to continue")
        folder = Path(stated["out"])
    else:
        given = Path(resume)
        folder = given if given.is_dir() else given.parent
        folder = folder.parent if folder.name == "checkpoints" else folder
        if not (folder / CONFIG).exists():
            raise UserError(f"--resume {resume}: there is no run in {folder} (no {CONFIG})")
    if not (folder / CONFIG).exists():
        return None
    settings: dict[str, Any] = read_config(folder)["settings"]
    # what belonged to the session before does not carry over
    for name in ("resume", "stop_after", "profile", "device", "workers"):
        settings.pop(name, None)
    return folder, settings


def _count_images(stated: dict[str, Any]) -> int:
    """Images of the data set, to choose a recipe; 0 where nothing says."""
    if "limit" in stated:
        return int(stated["limit"])
    if stated.get("masks") is not None:
        from ...data.masks.reader import MaskReader

        return len(MaskReader(stated["masks"]))
    if stated.get("images") is not None:
        from ...data.images import open_images

        return len(open_images(stated["images"]).paths())
    return 0

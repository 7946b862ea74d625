"""What a build finds (nothing, a finished or unfinished file, one made otherwise) and what it has to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...data.masks.reader import MaskReader
from ...data.path_keys import encode_path
from .merge import save_unfinished
from .plan import PartsFolder, Plan, as_json


@dataclass(frozen=True)
class Difference:
    """How a folder differs from a mask file: images only here, only there, and of another size in bytes."""

    new: Sequence[str]
    gone: Sequence[str]
    changed: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed)

    def __str__(self) -> str:
        named = [("new", self.new), ("gone", self.gone), ("changed", self.changed)]
        return ", ".join(f"{len(paths)} {name} (e.g. {paths[0]})" for name, paths in named if paths)


def compare(reader: MaskReader, root: str, paths: Sequence[str], *, sizes: bool) -> Difference:
    """Compare a mask file with the images in its folder now.

    Args:
        reader: the mask file.
        root: the image folder.
        paths: the images in it, sorted.
        sizes: look at each file's size in bytes too (a call to the file system for each image).
    """
    there = set(reader.paths)
    new = [path for path in paths if path not in there]
    gone = sorted(there.difference(paths), key=encode_path)
    changed = []
    if sizes:
        old = dict(zip(reader.paths, reader.column("file_bytes").tolist(), strict=True))
        changed = [path for path in paths if path in there and old[path] != _file_bytes(f"{root}/{path}")]
    return Difference(new, gone, changed)


def finished_as_asked(
    out: Path, root: str, recipe: dict[str, Any], paths: Sequence[str], *, update: bool
) -> bool:
    """Say whether `out` is there, complete, and of these images; with `update` also of their sizes in bytes.

    Raises:
        UserError: if it was made by another recipe or of another folder.
    """
    if not out.exists():
        return False
    reader = MaskReader(out)
    refuse_other(f"{out} was built", reader.recipe, reader.image_root, recipe, root)
    return bool(reader.attributes["complete"]) and not compare(reader, root, paths, sizes=update)


def plan_build(
    out: Path, parts: PartsFolder, root: str, recipe: dict[str, Any], paths: Sequence[str], *, update: bool
) -> Plan:
    """Make the plan of what is to be done, given what is there; `parts` holds that plan afterwards.

    Raises:
        UserError: if what is there was made otherwise, or (without `update`) of a folder that has changed.
    """
    old = parts.plan()
    if old is not None:
        refuse_other(
            f"the unfinished build in {parts.path} is", old["recipe"], old["image_root"], recipe, root
        )
        if old["base"] and not out.exists():
            raise UserError(f"{parts.path} adds to {out}, which is gone; put it back or delete that folder")
        plan = _plan(out, root, recipe, paths, update=update, fresh=not old["base"])
        if plan.as_dict() == old:
            return plan
        if not update:
            raise UserError(
                f"the images in {root} have changed since the build in {parts.path} began "
                f"({old['images']} then, {len(plan.paths)} now); add --update to keep what is finished, or "
                "delete that folder"
            )
        save_unfinished(out, parts)
        parts.remove_parts()
    plan = _plan(out, root, recipe, paths, update=update, fresh=not out.exists())
    parts.write_plan(plan.as_dict())
    return plan


def refuse_other(
    what: str, old_recipe: dict[str, Any], old_root: str, recipe: dict[str, Any], root: str
) -> None:
    """Raise if recipe or folder are not the same."""
    recipe = as_json(recipe)
    keys = sorted(key for key in {*old_recipe, *recipe} if old_recipe.get(key) != recipe.get(key))
    if len(keys) > 1:  # the description of a recipe goes with its parameters
        keys = [key for key in keys if key != "about"]
    if keys:
        told = ", ".join(f"{key}: {old_recipe.get(key)!r}, now {recipe.get(key)!r}" for key in keys[:4])
        raise UserError(f"{what} with other parameters ({told}); choose another --out, or delete it")
    if old_root != root:
        raise UserError(f"{what} from {old_root}, not {root}; choose another --out, or delete it")


def _plan(
    out: Path, root: str, recipe: dict[str, Any], paths: Sequence[str], *, update: bool, fresh: bool
) -> Plan:
    """The plan from nothing, or the one that adds to `out`."""
    if fresh:
        return Plan(root, recipe, paths)
    base = MaskReader(out)
    difference = compare(base, root, paths, sizes=update)
    if not update and (difference.gone or base.attributes["complete"]):
        raise UserError(
            f"the images in {root} have changed since {out} was built: {difference}; add --update to bring "
            "it up to date, or choose another --out"
        )
    work = sorted([*difference.new, *difference.changed], key=encode_path)
    return Plan(
        root, recipe, work, base.attributes["content_digest"], [*difference.gone, *difference.changed]
    )


def _file_bytes(path: str) -> int:
    """Size of a file, 0 for a broken link."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 (a Path for each of a million files is slow)
    except OSError:
        return 0

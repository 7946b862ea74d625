"""What a build finds (nothing, a finished or unfinished file, one made otherwise) and what it has to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...common.errors import UserError
from ...data.masks.reader import MaskReader
from ...data.path_keys import encode_path
from .merge import save_unfinished
from .plan import BuildRequest, PartFiles, Plan


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


def compare(reader: MaskReader, request: BuildRequest) -> Difference:
    """Compare a mask file with the images in its folder now.

    An update also looks at each file's size in bytes, one call to the file system for each image.
    """
    there = set(reader.paths)
    new = [path for path in request.paths if path not in there]
    gone = sorted(there.difference(request.paths), key=encode_path)
    changed = []
    if request.update:
        old = dict(zip(reader.paths, reader.column("file_bytes").tolist(), strict=True))
        changed = [
            path for path in request.paths if path in there and old[path] != request.images.file_bytes(path)
        ]
    return Difference(new, gone, changed)


def is_up_to_date(request: BuildRequest) -> bool:
    """Say whether the file is there, complete, and of these images; for an update also of their bytes.

    Raises:
        UserError: if it was made by another recipe or of another folder.
    """
    if not request.out.exists():
        return False
    reader = MaskReader(request.out)
    refuse_other(f"{request.out} was built", reader.recipe, reader.image_root, request)
    return bool(reader.attributes["complete"]) and not compare(reader, request)


def plan_build(request: BuildRequest, parts: PartFiles) -> Plan:
    """Make the plan of what is to be done, given what is there; `parts` holds that plan afterwards.

    Raises:
        UserError: if what is there was made otherwise, or (without `update`) of a folder that has changed.
    """
    old = parts.plan()
    if old is not None:
        what = f"the unfinished build in {parts.path} is"
        refuse_other(what, old["recipe"], old["image_root"], request)
        if old["base"] and not request.out.exists():
            raise UserError(
                f"{parts.path} adds to {request.out}, which is gone; put it back, or choose another --out"
            )
        plan = _plan(request, fresh=not old["base"])
        if plan.same_work(old):
            return plan
        if not request.update:
            raise UserError(
                f"the images in {request.image_root} have changed since the build in {parts.path} began "
                f"({old['images']} then, {len(plan.paths)} now); add --update to keep what is finished, or "
                "choose another --out"
            )
        save_unfinished(request.out, parts)
        parts.remove_parts()
    plan = _plan(request, fresh=not request.out.exists())
    parts.write_plan(plan.as_dict())
    return plan


def refuse_other(what: str, recipe: dict[str, Any], image_root: str, request: BuildRequest) -> None:
    """Raise if recipe or folder are not those asked for. The words of `about` make no other masks."""
    asked = request.recipe
    different = sorted(key for key in {*recipe, *asked} - {"about"} if recipe.get(key) != asked.get(key))
    if different:
        told = ", ".join(f"{key}: {recipe.get(key)!r}, now {asked.get(key)!r}" for key in different[:4])
        raise UserError(f"{what} with other parameters ({told}); choose another --out")
    if image_root != request.image_root:
        raise UserError(f"{what} from {image_root}, not {request.image_root}; choose another --out")


def _plan(request: BuildRequest, *, fresh: bool) -> Plan:
    """The plan from nothing, or the one that adds to the file that is there."""
    if fresh:
        return Plan(request.image_root, request.recipe, request.paths)
    base = MaskReader(request.out)
    difference = compare(base, request)
    if not request.update and (difference.gone or base.attributes["complete"]):
        raise UserError(
            f"the images in {request.image_root} have changed since {request.out} was built: {difference}; "
            "add --update to bring it up to date, or choose another --out"
        )
    work = sorted([*difference.new, *difference.changed], key=encode_path)
    drop = [*difference.gone, *difference.changed]
    return Plan(request.image_root, request.recipe, work, base.attributes["content_digest"], drop)

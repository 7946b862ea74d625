"""The plan of a build: which images, in which part files, by which recipe; and the folder that holds those.

A build never writes into its final file. Its masks go to part files, small mask files of their own, each
written whole into `masks.h5.parts/` beside a `plan.json`; a killed build loses only the part files it was
working on. Machines that share a disk can make disjoint shards, sets of part files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...common.errors import UserError
from ...data.build_folder import BuildFolder, paths_digest
from ...data.images.store import OriginalImages
from ...data.masks.format import read_recipe
from ...data.masks.reader import MaskReader

PART_IMAGES = 512
SMALL_PART_IMAGES = 64  # in folders of a few thousand images a part file of 512 would be much to lose
SMALL_FOLDER_IMAGES = 8192
TASK_IMAGES = 32


@dataclass(frozen=True)
class BuildRequest:
    """What a build is asked to make.

    Attributes:
        out: the mask file.
        images: the folder, archives or store that the images are in.
        recipe: every parameter, as JSON gives it back.
        paths: the images' names there, sorted.
        update: whether a file of a folder that has changed since is to be brought up to date.
    """

    out: Path
    images: OriginalImages
    recipe: dict[str, Any]
    paths: Sequence[str]
    update: bool = False

    @property
    def image_root(self) -> str:
        """What the mask file names as the place of its images."""
        return self.images.location


class Task(NamedTuple):
    """Some images of one part file."""

    part: int
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a build has to do. Equal plans make equal files.

    Attributes:
        image_root: where the images are: the folder's absolute path, archives or a URL.
        recipe: every parameter.
        paths: the images to work on, sorted.
        base: content digest of the file that this build adds to, "" if it starts from nothing.
        drop: rows of that file that are not kept (images gone or changed).
    """

    image_root: str
    recipe: dict[str, Any]
    paths: Sequence[str]
    base: str = ""
    drop: Sequence[str] = ()

    @property
    def part_images(self) -> int:
        """Images per part file."""
        return PART_IMAGES if len(self.paths) >= SMALL_FOLDER_IMAGES else SMALL_PART_IMAGES

    @property
    def part_files(self) -> int:
        """How many part files there are."""
        return -(-len(self.paths) // self.part_images)

    def part_paths(self, part: int) -> Sequence[str]:
        """Return the images of one part file."""
        return self.paths[part * self.part_images : (part + 1) * self.part_images]

    def tasks(self, parts: Iterable[int]) -> list[Task]:
        """Cut the images of some part files into tasks of at most 32 images."""
        return [
            Task(part, tuple(paths[start : start + TASK_IMAGES]))
            for part in parts
            for paths in [self.part_paths(part)]
            for start in range(0, len(paths), TASK_IMAGES)
        ]

    def same_work(self, recorded: dict[str, Any]) -> bool:
        """Say whether a recorded plan is this one; recipes are compared before, their `about` may differ."""
        return {**self.as_dict(), "recipe": None} == {**recorded, "recipe": None}

    def as_dict(self) -> dict[str, Any]:
        """Return what `plan.json` holds: the paths as a digest."""
        return {
            "image_root": self.image_root,
            "recipe": self.recipe,
            "images": len(self.paths),
            "paths_digest": paths_digest(self.paths),
            "part_images": self.part_images,
            "base": self.base,
            "drop": list(self.drop),
        }


def as_json(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as they come back from JSON: tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(recipe))
    return plain


class PartFiles(BuildFolder):
    """The folder `<out>.parts` of an unfinished build of masks."""

    def plan(self) -> dict[str, Any] | None:
        """Return the plan written there, its recipe by the names of today; None if there is none.

        Raises:
            UserError: if it cannot be read.
        """
        plan = super().plan()
        if plan is None:
            return None
        kinds = {name: type(value) for name, value in Plan("", {}, ()).as_dict().items()}
        if not isinstance(plan, dict) or any(
            not isinstance(plan.get(name), kind) for name, kind in kinds.items()
        ):
            raise UserError(f"{self.path}/plan.json is not what a build of masks wrote; choose another --out")
        return {**plan, "recipe": read_recipe(plan["recipe"])}

    def readers(self) -> list[MaskReader]:
        """Return the finished part files, in order."""
        return [MaskReader(self.part_path(part)) for part in self.finished()]

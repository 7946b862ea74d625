"""The plan of a build: which images, in which parts, by which recipe; and the folder that holds the parts.

A build never writes into its final file. Each part of it is a small mask file of its own, written whole into
`masks.h5.parts/` beside a `plan.json`; a killed build loses only the parts it was working on. Machines that
share a disk can work on disjoint parts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...data.build_folder import BuildFolder, paths_digest
from ...data.masks.reader import MaskReader

PART_IMAGES = 512
SMALL_PART_IMAGES = 64  # in folders of a few thousand images a part of 512 would be much to lose
SMALL_FOLDER_IMAGES = 8192
TASK_IMAGES = 32


@dataclass(frozen=True)
class Plan:
    """What a build has to do. Equal plans make equal files.

    Attributes:
        image_root: absolute path of the image folder.
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
        """Images per part."""
        return PART_IMAGES if len(self.paths) >= SMALL_FOLDER_IMAGES else SMALL_PART_IMAGES

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-len(self.paths) // self.part_images)

    def part(self, index: int) -> Sequence[str]:
        """Return the paths of one part."""
        return self.paths[index * self.part_images : (index + 1) * self.part_images]

    def tasks(self, parts: Sequence[int]) -> list[tuple[str, ...]]:
        """Cut the images of some parts into tasks of at most 32 images, none across two parts."""
        return [
            tuple(paths[start : start + TASK_IMAGES])
            for paths in map(self.part, parts)
            for start in range(0, len(paths), TASK_IMAGES)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return what `plan.json` holds: the paths as a digest."""
        return {
            "image_root": self.image_root,
            "recipe": as_json(self.recipe),
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


class PartsFolder(BuildFolder):
    """The folder `<out>.parts` of an unfinished build of masks."""

    def readers(self) -> list[MaskReader]:
        """Return the finished parts, in order."""
        return [MaskReader(self.part_path(index)) for index in self.finished()]

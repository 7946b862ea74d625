"""Rows of the mask file by a recipe: imports, and so compiles, the kernels that find the foreground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...data.images.store import OriginalImages
from ...data.masks.writer import MaskRow
from ..pipeline import segment
from ..recipes import MaskRecipe
from .worker import segmented_row


@dataclass(frozen=True)
class RecipeRows:
    """Makes rows by finding each image's foreground."""

    recipe: MaskRecipe

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe's parameters."""
        return self.recipe.as_dict()

    def row(self, images: OriginalImages, path: str) -> MaskRow:
        """Make one image's row; see `segmented_row`."""
        return segmented_row(images, path, self.recipe, lambda image: segment(image, self.recipe))

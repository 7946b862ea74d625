"""The recipes: every parameter of stage one, frozen, so that a mask file can say exactly how it was made."""

from dataclasses import asdict, dataclass
from typing import Any

from ..data.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an image becomes a mask.

    Attributes:
        name: what a user types.
        maps: saliency maps that are fused, each scaled to [0, 1]: "barrier", "boundary", "ranking",
            "spectral".
        work_size: long side of the working image, in pixels; masks are stored at this size.
        region_scale, region_sigma, region_min_size: Felzenszwalb's parameters, at the working size.
        min_part: parts of the mask smaller than this share of the largest are dropped.
        low_confidence: masks whose confidence is below are flagged, and kept.
    """

    name: str
    maps: tuple[str, ...] = ("barrier",)
    work_size: int = 160
    region_scale: float = 100.0
    region_sigma: float = 0.8
    region_min_size: int = 20
    min_part: float = 0.1
    low_confidence: float = 0.5

    def as_dict(self) -> dict[str, Any]:
        """Return every parameter, ready for JSON."""
        return asdict(self)


RECIPES = {recipe.name: recipe for recipe in (Recipe(name="fast"), Recipe(name="quality"))}


def get_recipe(recipe: str | Recipe) -> Recipe:
    """Return a recipe by name (or the recipe itself).

    Raises:
        UserError: if no recipe has that name; lists those there are.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise UserError(f"unknown mask recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]

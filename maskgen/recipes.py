"""The recipes: every parameter of stage one, frozen, so that a mask file can say exactly how it was made."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..common.errors import UserError

MAPS = ("barrier", "boundary", "ranking", "ranking_wide", "spectral")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an image becomes a mask. Where each number was measured: docs/masks.md.

    Attributes:
        name: what a user types.
        about: one line, with the source.
        maps: saliency maps and their weights in the sum; each map is scaled to [0, 1] before. "barrier"
            (MB+), "boundary" (RBD), "ranking" (MR with the paper's colour width), "ranking_wide" (twice
            that), "spectral". Without maps the largest region off the border is the mask.
        work_size: long side of the working image, in pixels; masks are stored at this size.
        superpixels: how many SLIC superpixels to aim at.
        bottom: weight of the bottom border as evidence for background, for "boundary" and the rankings; the
            papers have 1.
        regions: what the fused map is averaged over before the threshold: "felzenszwalb", "superpixels" or
            "pixels".
        region_scale, region_sigma, region_min_size: Felzenszwalb's parameters at the working size.
        off_border: how strongly the threshold keeps the mask off the top, left and right border: exponent
            of the share of the border left out; 0 for Otsu's own threshold.
        looks: how often threshold and cut are done; after the first, the mask joins the map.
        min_part: parts of the mask smaller than this share of the largest are dropped.
        cut: rounds of the solver of the cut along colour edges that starts from the mask; 0 for no cut.
        cut_smoothness: gamma of the cut, the price of an edge in a flat place; GrabCut's paper has 50.
        cut_agreement: the cut is taken where its IoU with the mask before is at least this.
        learned: share of the self-trained regressor in the map; 0 for none.
        low_confidence: masks whose confidence is below are flagged, and kept.
    """

    name: str
    about: str = ""
    maps: tuple[tuple[str, float], ...] = ()
    work_size: int = 160
    superpixels: int = 150
    bottom: float = 0.0
    regions: str = "felzenszwalb"
    region_scale: float = 100.0
    region_sigma: float = 0.8
    region_min_size: int = 20
    off_border: float = 0.0
    looks: int = 1
    min_part: float = 0.1
    cut: int = 0
    cut_smoothness: float = 15.0
    cut_agreement: float = 0.3
    learned: float = 0.0
    low_confidence: float = 0.2

    def __post_init__(self) -> None:
        unknown = [name for name, _ in self.maps if name not in MAPS]
        if unknown:
            raise ValueError(f"unknown saliency map {unknown[0]!r}; choose from {', '.join(MAPS)}")
        if self.regions not in ("felzenszwalb", "superpixels", "pixels"):
            raise ValueError(f"regions must be felzenszwalb, superpixels or pixels, not {self.regions!r}")
        if self.work_size < 16 or self.superpixels < 4:
            raise ValueError("work_size must be at least 16 pixels and superpixels at least 4")
        if self.looks < 1 or self.cut < 0:
            raise ValueError(f"looks must be at least 1 and cut at least 0, not {self.looks} and {self.cut}")
        if not 0 <= self.learned <= 1:
            raise ValueError(f"learned must lie in [0, 1], not {self.learned}")

    def as_dict(self) -> dict[str, Any]:
        """Return every parameter, ready for JSON."""
        return asdict(self)


_QUALITY = Recipe(
    name="quality",
    about="RBD, MR and MB+ fused, Felzenszwalb regions, Otsu off the border, colour cut; two looks",
    maps=(("boundary", 1.0), ("ranking", 1.0), ("ranking_wide", 1.0), ("barrier", 0.5)),
    off_border=5.0,
    looks=2,
    cut=100,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="fast",
            about="RBD (CVPR 2014) and MR (CVPR 2013) on 100 SLIC superpixels, Otsu",
            maps=(("boundary", 1.0), ("ranking_wide", 1.0)),
            superpixels=100,
            regions="superpixels",
        ),
        _QUALITY,
        Recipe(
            name="barrier",
            about="MB+ (ICCV 2015), mean over Felzenszwalb regions, Otsu",
            maps=(("barrier", 1.0),),
        ),
        Recipe(
            name="felzenszwalb",
            about="largest Felzenszwalb region off the border, at DetCon's settings (ICCV 2021)",
            work_size=320,
            region_scale=1000.0,
            region_min_size=1000,
        ),
        Recipe(
            name="spectral",
            about="spectral residual (Hou and Zhang, CVPR 2007), Otsu; a weak baseline",
            maps=(("spectral", 1.0),),
            regions="pixels",
        ),
        replace(
            _QUALITY,
            name="hybrid_drfi",
            about="`quality` with a region regressor trained on your own first masks (after DRFI, CVPR 2013)",
            learned=0.3,
        ),
    )
}


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

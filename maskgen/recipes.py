"""The mask recipes: every parameter of stage one, frozen, so that a mask file can say how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..common.config import Settings, build
from ..common.errors import UserError
from ..data.images.decode import Reader
from ..data.images.inputs import BandRange, Bands, Inputs

SaliencyMap = Literal["barrier", "boundary", "ranking", "ranking_wide", "spectral"]
SUPERPIXEL_MAPS = frozenset(("boundary", "ranking", "ranking_wide"))
LARGEST_WORK_SIZE = 4096  # pixels; larger masks cannot be stored

PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class MaskRecipe(Settings):
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
            of the fraction of the border left out; 0 for Otsu's own threshold.
        iterations: how often threshold and cut are done; after the first, the mask joins the map.
        min_part: parts of the mask smaller than this fraction of the largest are dropped.
        max_hole: holes of at most this fraction of the mask are filled; None: all of them. Larger ones are
            seen through, as those under a bag's handle.
        cut: rounds of the solver of the cut along colour edges that starts from the mask; 0 for no cut.
        cut_smoothness: gamma of the cut, the price of an edge in a flat place; GrabCut's paper has 50.
        cut_agreement: the cut is taken where its IoU with the mask before is at least this.
        learned: weight of the self-trained network in the map; 0 for none.
        low_confidence: masks whose confidence is below are flagged, and kept.
        bands: the three bands of TIFF files that are taken for red, green and blue, numbered from 1; None:
            images are photographs.
        band_range: values that become 0 and 255, one (low, high) for all three or one for each; None: the
            files' type's own.
    """

    name: Annotated[str, Field(min_length=1)]
    about: str = ""
    maps: tuple[tuple[SaliencyMap, PositiveFloat], ...] = ()
    work_size: Annotated[int, Field(ge=16, le=LARGEST_WORK_SIZE)] = 160
    superpixels: Annotated[int, Field(ge=4, le=4096)] = 150
    bottom: Fraction = 0.0
    regions: Literal["felzenszwalb", "superpixels", "pixels"] = "felzenszwalb"
    region_scale: PositiveFloat = 100.0
    region_sigma: Annotated[float, Field(ge=0)] = 0.8
    region_min_size: Annotated[int, Field(ge=0)] = 20
    off_border: Annotated[float, Field(ge=0)] = 0.0
    iterations: Annotated[int, Field(ge=1)] = 1
    min_part: Fraction = 0.1
    max_hole: Fraction | None = None
    cut: Annotated[int, Field(ge=0)] = 0
    cut_smoothness: PositiveFloat = 15.0
    cut_agreement: Fraction = 0.3
    learned: Fraction = 0.0
    low_confidence: Fraction = 0.2
    bands: Bands | None = None
    band_range: BandRange | None = None

    @property
    def reader(self) -> Reader | None:
        """What decodes the images; None: as photographs."""
        return Inputs(bands=self.bands, band_range=self.band_range).reader

    @model_validator(mode="after")
    def _check_bands(self) -> Self:
        """Refuse another number of bands than three."""
        if self.bands is not None and len(self.bands) != 3:
            raise ValueError(f"bands: masks are made of three bands, not {len(self.bands)}")
        if self.band_range is not None and self.bands is None:
            raise ValueError("band_range is of the chosen bands: give bands too")
        return self

    @model_validator(mode="after")
    def _regions_come_from_maps(self) -> Self:
        """Refuse to average over what no map of the recipe makes."""
        if self.regions == "superpixels" and not SUPERPIXEL_MAPS & {name for name, _ in self.maps}:
            raise ValueError(
                f"regions superpixels needs one of the maps {', '.join(sorted(SUPERPIXEL_MAPS))}"
            )
        if self.regions == "pixels" and not self.maps:
            raise ValueError("regions pixels needs a saliency map")
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return every parameter, ready for JSON; as files made before, without newer ones at None."""
        unsaid = {name for name in ("max_hole", "bands", "band_range") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=unsaid)


# The words of `about` are part of a file's content digest: they change when masks do, not by themselves.
_QUALITY = MaskRecipe(
    name="quality",
    about="RBD, MR and MB+ fused, Felzenszwalb regions, Otsu off the border, colour cut; two looks",
    maps=(("boundary", 1.0), ("ranking", 1.0), ("ranking_wide", 1.0), ("barrier", 0.5)),
    off_border=5.0,
    iterations=2,
    max_hole=0.01,
    cut=100,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        MaskRecipe(
            name="fast",
            about="RBD (CVPR 2014) and MR (CVPR 2013) on 100 SLIC superpixels, Otsu",
            maps=(("boundary", 1.0), ("ranking_wide", 1.0)),
            superpixels=100,
            regions="superpixels",
            max_hole=0.01,
        ),
        _QUALITY,
        MaskRecipe(
            name="barrier",
            about="MB+ (ICCV 2015), mean over Felzenszwalb regions, Otsu",
            maps=(("barrier", 1.0),),
        ),
        MaskRecipe(
            name="felzenszwalb",
            about="largest Felzenszwalb region off the border, at DetCon's settings (ICCV 2021)",
            work_size=320,
            region_scale=1000.0,
            region_min_size=1000,
        ),
        MaskRecipe(
            name="spectral",
            about="spectral residual (Hou and Zhang, CVPR 2007), Otsu; a weak baseline",
            maps=(("spectral", 1.0),),
            regions="pixels",
        ),
        _QUALITY.replace(
            name="refined",
            about="`quality` with the probability of a network trained on your own first masks in the map",
            learned=0.8,
            off_border=3.0,  # the network has seen objects that touch the border
        ),
    )
}


def recorded_reader(recipe: Mapping[str, Any]) -> Reader | None:
    """What decodes the images of a mask file, by its recorded recipe; None: as photographs."""
    told = {name: recipe[name] for name in ("bands", "band_range") if recipe.get(name) is not None}
    return build(Inputs, told).reader


def get_recipe(recipe: str | MaskRecipe) -> MaskRecipe:
    """Return a recipe by name (or the recipe itself).

    Raises:
        UserError: if no recipe has that name; lists those there are.
    """
    if isinstance(recipe, MaskRecipe):
        return recipe
    if recipe not in RECIPES:
        raise UserError(f"unknown mask recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]

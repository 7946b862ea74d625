"""Draw which cells of two views of one photograph a backbone matches.

Shape legend: H, W pixels of the photograph, S cells per side, P = S*S, V view side in pixels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Polygon
from torch import Tensor

from ...common.errors import UserError
from ...common.imagenet import MEAN, STD
from ...common.randomness import counter_generator
from ...data.geometry import ViewGeometry, sample_geometry
from ...data.loading.views import cut_view
from ...data.positions import cell_centres, stack
from ...models.backbones.base import Backbone
from ...pretrain.losses import match_cells
from ...pretrain.modules.matches import cell_distance, mutual

MOST_LINES = 24  # more cannot be told apart


@dataclass(frozen=True)
class ShownMatches:
    """Two views of a photograph and the matches between their cells."""

    photograph: npt.NDArray[np.uint8]  # (H, W, 3)
    views: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]  # (V, V, 3) each
    geometry: tuple[ViewGeometry, ViewGeometry]  # fields (1,)
    match: Tensor  # (P,) the second view's cell for each of the first's
    mutual: Tensor  # (P,) bool
    distance: Tensor  # (P,) between matched centres in the original, in cells of the first view
    grid: int

    def summary(self) -> str:
        """Say in a line how good the matches are."""
        fraction = self.mutual.float().mean().item()
        close = (self.distance <= 1).float().mean().item()
        return (
            f"{self.grid} x {self.grid} cells: {fraction:.0%} of the matches are mutual, {close:.0%} lie "
            f"within a cell of the same place (median {self.distance.median().item():.1f} cells)"
        )


@torch.no_grad()
def find_matches(
    backbone: Backbone, photograph: npt.NDArray[np.uint8], *, image_size: int = 224, seed: int = 0
) -> ShownMatches:
    """Draw two crops of a photograph as in training and match their cells by the backbone's last map.

    Args:
        backbone: in eval mode, on the CPU.
        photograph: (H, W, 3) uint8 RGB.
        image_size: side of the views, pixels.
        seed: of the two crops.

    Raises:
        UserError: if the map at that size is of a single cell.
    """
    size = (photograph.shape[0], photograph.shape[1])
    drawn = [sample_geometry(counter_generator(seed, 0, 0, view), size, scale=(0.3, 1.0)) for view in (0, 1)]
    views = [cut_view(photograph, size, geometry, image_size) for geometry in drawn]
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    pixels = torch.stack([torch.from_numpy(view).permute(2, 0, 1) for view in views])
    maps = backbone((pixels / 255 - mean) / std)[backbone.last]
    grid = maps.shape[-1]
    if grid < 2:
        raise UserError(
            f"--image-size {image_size} leaves a map of 1 x 1, which has nothing to match; "
            f"use at least {4 * backbone.stride}"
        )
    first, second = maps.flatten(2)[:1], maps.flatten(2)[1:]
    there, back = match_cells(first, second), match_cells(second, first)
    geometry = (stack(drawn[:1]), stack(drawn[1:]))
    return ShownMatches(
        photograph=photograph,
        views=(views[0], views[1]),
        geometry=geometry,
        match=there[0],
        mutual=mutual(there, back)[0],
        distance=cell_distance(*geometry, there, grid)[0],
        grid=grid,
    )


def matches_picture(shown: ShownMatches) -> bytes:
    """Draw the photograph with both crops, and the views with lines between mutual matches, as PNG.

    A pair has a colour of its own. Its ends are dots where the two cells lie within one cell of the same
    place of the photograph, else crosses.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    whole, left, right = figure.subplots(1, 3, width_ratios=[1.1, 1, 1])
    figure.suptitle(shown.summary(), fontsize=10)
    for axes, picture, title in (
        (whole, shown.photograph, "the photograph and its two crops"),
        (left, shown.views[0], "first view; dots: matched to the same place"),
        (right, shown.views[1], "second view; crosses: matched elsewhere"),
    ):
        axes.imshow(picture)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    for geometry, colour in zip(shown.geometry, ("tab:blue", "tab:orange"), strict=True):
        corners = cell_centres(geometry, 1)[0, 0].numpy()
        height, width = float(geometry.height), float(geometry.width)
        box = [(-1, -1), (-1, 1), (1, 1), (1, -1)]
        outline = [(corners[1] + x * width / 2, corners[0] + y * height / 2) for y, x in box]
        whole.add_patch(Polygon(outline, fill=False, edgecolor=colour, linewidth=2))
    step = shown.views[0].shape[0] / shown.grid
    cells = _spread(torch.nonzero(shown.mutual).flatten().tolist())
    for number, cell in enumerate(cells):
        ends = [_centre(place, shown.grid, step) for place in (cell, int(shown.match[cell]))]
        look = {
            "color": matplotlib.colormaps["hsv"](number / max(1, len(cells))),
            "marker": "o" if shown.distance[cell] <= 1 else "X",
            "markeredgecolor": "black",
            "markersize": 9,
        }
        for axes, end in ((left, ends[0]), (right, ends[1])):
            axes.plot(*end, **look)
        bend = 0.08 * (cell % shown.grid - (shown.grid - 1) / 2)  # lines of one row lie beside each other
        figure.add_artist(
            ConnectionPatch(
                ends[0],
                ends[1],
                "data",
                "data",
                axesA=left,
                axesB=right,
                color=look["color"],
                linewidth=1.2,
                connectionstyle=f"arc3,rad={bend:.3f}",
            )
        )
    stream = io.BytesIO()
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _centre(cell: int, grid: int, step: float) -> tuple[float, float]:
    """Pixel (x, y) of a cell's centre in its view."""
    return (cell % grid + 0.5) * step - 0.5, (cell // grid + 0.5) * step - 0.5


def _spread(cells: list[int]) -> list[int]:
    """At most MOST_LINES of the cells, evenly spread."""
    if len(cells) <= MOST_LINES:
        return cells
    return [cells[int(place)] for place in np.linspace(0, len(cells) - 1, MOST_LINES)]

"""From an image to its foreground mask: saliency maps, fusion, mean over regions, threshold, cut.

Shapes: H, W the image; h, w the working image (long side 160 pixels in most recipes); R regions.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..common.errors import UserError
from ..common.iou import iou
from ..common.types import Mask, Pixels
from .recipes import MaskRecipe, get_recipe
from .saliency.barrier import barrier_saliency, minmax_scale
from .saliency.boundary import boundary_saliency
from .saliency.ranking import SIGMA_SQUARED, ranking_saliency
from .saliency.spectral import spectral_saliency
from .saliency.superpixels import superpixel_graph
from .segmentation.binarise import border_pixels, clean_mask, confidence, otsu_split
from .segmentation.cut import colour_cut
from .segmentation.regions import felzenszwalb, region_means

SMALLEST_SIDE = 4  # pixels of the working image; below there is no inside and outside


class Foreground(NamedTuple):
    """What stage one says about one image.

    Attributes:
        mask: (h, w) bool at the working size.
        saliency: (h, w) float32 in [0, 1].
        confidence: in [0, 1]; how clearly the image falls into two parts. 0 for an empty mask.
    """

    mask: Mask
    saliency: NDArray[np.float32]
    confidence: float


def resize_to_work_size(image: Pixels, work_size: int) -> Pixels:
    """Shrink (never enlarge) to a long side of `work_size` pixels by area averaging."""
    height, width = image.shape[:2]
    factor = work_size / max(height, width)
    if factor >= 1:
        return np.ascontiguousarray(image)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def segment(image: Pixels, recipe: str | MaskRecipe = "quality") -> Foreground:
    """Find the foreground of an image at the working size.

    Args:
        image: (H, W, 3) uint8 RGB, any size.
        recipe: a recipe or its name.

    Returns:
        The mask, saliency and confidence at the working size (smaller images keep theirs). An image without
        two sides to tell apart (constant, or thinner than 4 pixels at the working size) has an empty mask and
        confidence 0.

    Raises:
        UserError: for an unknown recipe, or one that needs a trained network.
        ValueError: if `image` is not (H, W, 3) uint8.

    Examples:
        >>> from skimage.data import chelsea
        >>> found = segment(chelsea(), "fast")
        >>> found.mask.shape, found.saliency.dtype, 0 < found.confidence < 1
        ((106, 160), dtype('float32'), True)
    """
    recipe = get_recipe(recipe)
    if recipe.learned:
        raise UserError(
            f"recipe {recipe.name} needs a network that has learned from first masks of your images: build "
            "with another recipe, then `hapicl masks refine --images DIR --masks first.h5`"
        )
    work, lab = preprocess(image, recipe)
    if lacks_contrast(work):
        return empty_foreground(work)
    if not recipe.maps:
        return _largest_inner_region(work, lab, recipe)
    saliency, superpixels = saliency_map(work, lab, recipe)
    return binarize(work, lab, saliency, superpixels, recipe)


def saliency_map(
    work: Pixels, lab: NDArray[np.float32], recipe: MaskRecipe
) -> tuple[NDArray[np.float32], NDArray[np.int32] | None]:
    """Compute and fuse a recipe's maps.

    Args:
        work: (h, w, 3) uint8 RGB.
        lab: the same in CIE Lab, L in 0 .. 100.
        recipe: says which maps.

    Returns:
        (h, w) float32 in [0, 1], and the superpixel labels where a map needed them.
    """
    names = {name for name, _ in recipe.maps}
    needs_graph = names & {"boundary", "ranking", "ranking_wide"}
    graph = superpixel_graph(lab, recipe.superpixels) if needs_graph else None
    fused = np.zeros(work.shape[:2], np.float32)
    for name, weight in recipe.maps:
        if name == "barrier":
            values = barrier_saliency(cv2.cvtColor(work, cv2.COLOR_RGB2LAB).astype(np.float32))
        elif name == "spectral":
            values = spectral_saliency(np.ascontiguousarray(lab[:, :, 0]))
        else:
            assert graph is not None
            if name == "boundary":
                nodes = boundary_saliency(graph, recipe.bottom)
            else:
                width = SIGMA_SQUARED * (2 if name == "ranking_wide" else 1)
                nodes = ranking_saliency(graph, width, recipe.bottom)
            values = nodes[graph.labels]
        fused += np.float32(weight) * minmax_scale(values)
    return minmax_scale(fused), None if graph is None else graph.labels


def binarize(
    work: Pixels,
    lab: NDArray[np.float32],
    saliency: NDArray[np.float32],
    superpixels: NDArray[np.int32] | None,
    recipe: MaskRecipe,
) -> Foreground:
    """Average the map over regions, split it, clean, and cut along colour edges where that agrees.

    With more than one iteration the mask found joins the map, and all is done again: what the cut has found
    to belong together counts, what it has given up counts less.
    """
    labels = _regions(work, saliency, superpixels, recipe)
    area = np.bincount(labels.ravel())
    border = border_pixels(labels, len(area))
    seen, agreement, separation = saliency, 1.0, 0.0
    for iteration in range(recipe.iterations):
        means = region_means(labels, seen)
        threshold, between = otsu_split(means, area, border, recipe.off_border)
        mask = clean_mask((means > threshold)[labels], recipe.min_part, recipe.max_hole)
        agreed = 1.0
        if recipe.cut:
            cut = colour_cut(work, mask, recipe.cut, recipe.cut_smoothness)
            cut = clean_mask(cut, recipe.min_part, recipe.max_hole)
            agreed = iou(mask, cut)
            # a cut that leaves most of the mask has lost the object to its colour model: keep the mask
            mask = cut if agreed >= recipe.cut_agreement else mask
        if iteration == 0:  # later ones see their own mask, and would be too sure
            agreement, separation = agreed, between
        seen = minmax_scale(saliency + mask.astype(np.float32))
    return Foreground(mask, means[labels], confidence(lab, mask, separation, agreement))


def _regions(
    work: Pixels,
    saliency: NDArray[np.float32],
    superpixels: NDArray[np.int32] | None,
    recipe: MaskRecipe,
) -> NDArray[np.int32]:
    """Label what the map is averaged over: superpixels, the map's own levels, or Felzenszwalb's regions."""
    if recipe.regions == "superpixels" and superpixels is not None:
        return superpixels
    if recipe.regions == "pixels":
        labels = np.unique((saliency * 255).astype(np.int32), return_inverse=True)[1].astype(np.int32)
        return np.asarray(labels.reshape(saliency.shape))
    return _felzenszwalb(work, recipe)


def foreground(image: Pixels, recipe: str | MaskRecipe = "quality") -> Mask:
    """Find the foreground of an image.

    Args:
        image: (H, W, 3) uint8 RGB, any size.
        recipe: a recipe or its name ("fast", "quality", ...).

    Returns:
        (H, W) bool at the image's own size.

    Raises:
        UserError, ValueError: as `segment`.

    Examples:
        >>> from skimage.data import chelsea
        >>> foreground(chelsea(), "fast").shape
        (300, 451)
    """
    mask = segment(image, recipe).mask
    height, width = image.shape[:2]
    enlarged = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    full: Mask = enlarged > 0.5
    return full


def preprocess(image: Pixels, recipe: MaskRecipe) -> tuple[Pixels, NDArray[np.float32]]:
    """Check an image and return the working image in RGB and in CIE Lab."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    work = resize_to_work_size(image, recipe.work_size)
    lab = cv2.cvtColor(work.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    return work, lab.astype(np.float32, copy=False)


def lacks_contrast(work: Pixels) -> bool:
    """Say whether an image is too thin or too flat to have a foreground."""
    if min(work.shape[:2]) < SMALLEST_SIDE:
        return True
    ends = [cv2.minMaxLoc(plane)[:2] for plane in cv2.split(work)]
    return max(high - low for low, high in ends) < 2


def empty_foreground(work: Pixels) -> Foreground:
    """Return the empty answer."""
    return Foreground(np.zeros(work.shape[:2], bool), np.zeros(work.shape[:2], np.float32), 0.0)


def _felzenszwalb(work: Pixels, recipe: MaskRecipe) -> NDArray[np.int32]:
    return felzenszwalb(
        work, scale=recipe.region_scale, sigma=recipe.region_sigma, min_size=recipe.region_min_size
    )


def _largest_inner_region(work: Pixels, lab: NDArray[np.float32], recipe: MaskRecipe) -> Foreground:
    """Take the largest region that does not touch the border; its confidence is its colour contrast."""
    labels = _felzenszwalb(work, recipe)
    area = np.bincount(labels.ravel())
    area[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = 0
    if not area.any():
        return empty_foreground(work)
    mask = labels == int(area.argmax())
    return Foreground(mask, mask.astype(np.float32), confidence(lab, mask, 1.0, 1.0))

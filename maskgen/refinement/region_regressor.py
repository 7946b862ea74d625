"""Self-training: a region regressor learns from the first masks of the user's own images, and corrects them.

No labels and no weights from elsewhere: the targets are the masks of a first build. A single mask is often
wrong, but wrong in another way than the next; the regressor keeps what holds over many images.

Shapes: h, w the working image, R regions, D descriptors.

After H. Jiang et al., CVPR 2013 (regional feature integration; random forest, supervised there) and
self-training as in the second stage of unsupervised saliency networks.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from ...common.errors import UserError
from ...common.randomness import counter_generator
from ...common.types import Mask, Pixels
from ...data.images.decode import read_image
from ...data.masks.reader import MaskReader
from ...data.masks.writer import MaskRow
from ..building.worker import segmented_row
from ..pipeline import Foreground, binarize, empty_foreground, lacks_contrast, preprocess, saliency_map
from ..recipes import MaskRecipe, get_recipe
from ..saliency.barrier import minmax_scale
from ..segmentation.regions import region_means
from .descriptors import describe_levels

TREES = 100  # of 15 leaves each
LEAST_REGIONS = 200  # fewer regions than this train nothing
MOST_REGIONS = 60_000  # drawn by counter from all regions; more cost time and change little


@dataclass(frozen=True)
class RegionRegressor:
    """A trained regressor from region descriptors to the share of foreground.

    Attributes:
        model: scikit-learn's fitted regressor.
        images: how many images it saw.
        regions: how many regions.
    """

    model: Any
    images: int
    regions: int


def train_region_regressor(
    images: Iterable[Pixels],
    masks: Iterable[Mask],
    *,
    recipe: str | MaskRecipe = "hybrid_drfi",
    seed: int = 0,
) -> RegionRegressor:
    """Train on pseudo-labels: each region's share of foreground in a first mask.

    Args:
        images: (H, W, 3) uint8 RGB, read one after another.
        masks: (h, w) bool, one per image, any size.
        recipe: gives the working size.
        seed: of the draw of regions and of the trees.

    Raises:
        UserError: if there are too few regions to train on.
    """
    recipe = get_recipe(recipe)
    described, shares, weights = [], [], []
    count = 0
    for image, mask in zip(images, masks, strict=True):
        work, _ = preprocess(image, recipe)
        if lacks_contrast(work):
            continue
        size = work.shape[1], work.shape[0]
        target = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA).astype(np.float32)
        for labels, descriptors in describe_levels(work):
            described.append(descriptors)
            shares.append(region_means(labels, target))
            weights.append(np.bincount(labels.ravel()) / labels.size)
        count += 1
    regions = sum(len(part) for part in described)
    if regions < LEAST_REGIONS:
        raise UserError(f"{count} usable images give {regions} regions, too few to train on; use more images")
    keep = np.arange(regions)
    if regions > MOST_REGIONS:
        draw = counter_generator(seed, 0, 0, 0, purpose="refine").permutation(regions)
        keep = np.sort(draw[:MOST_REGIONS])
    model = HistGradientBoostingRegressor(
        max_iter=TREES, max_leaf_nodes=15, learning_rate=0.08, min_samples_leaf=40, l2_regularization=1.0,
        early_stopping=False, random_state=seed,
    )  # fmt: skip
    model.fit(np.concatenate(described)[keep], np.concatenate(shares)[keep], np.concatenate(weights)[keep])
    return RegionRegressor(model, count, len(keep))


def learned_saliency(work: Pixels, regressor: RegionRegressor) -> NDArray[np.float32]:
    """Predict every region of every level and average the levels; (h, w) float32 in [0, 1]."""
    levels = describe_levels(work)
    predicted = regressor.model.predict(np.concatenate([descriptors for _, descriptors in levels]))
    total = np.zeros(work.shape[:2], np.float32)
    start = 0
    for labels, descriptors in levels:
        total += predicted[start : start + len(descriptors)][labels].astype(np.float32)
        start += len(descriptors)
    return np.clip(total / len(levels), 0, 1)


def refine(image: Pixels, regressor: RegionRegressor, recipe: str | MaskRecipe = "hybrid_drfi") -> Foreground:
    """Segment as `segment` does, with the learned map averaged into the heuristic one.

    Args:
        image: (H, W, 3) uint8 RGB.
        regressor: trained on first masks of images of the same kind.
        recipe: `learned` is the share of the learned map.

    Returns:
        As `segment`.
    """
    recipe = get_recipe(recipe)
    work, lab = preprocess(image, recipe)
    if lacks_contrast(work):
        return empty_foreground(work)
    heuristic, superpixels = saliency_map(work, lab, recipe)
    learned = minmax_scale(learned_saliency(work, regressor))
    mixed = (1 - recipe.learned) * heuristic + recipe.learned * learned
    return binarize(work, lab, mixed.astype(np.float32), superpixels, recipe)


@dataclass(frozen=True)
class RefinedRows:
    """Makes rows of a mask file by the regressor; a row maker for `build_rows`."""

    recipe: MaskRecipe
    regressor: RegionRegressor
    first_masks: str
    limit: int
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return what the masks depend on: the recipe and which first masks the regressor learned from."""
        learned_from = {"first_masks": self.first_masks, "limit": self.limit, "seed": self.seed}
        size = {"images": self.regressor.images, "regions": self.regressor.regions}
        return self.recipe.as_dict() | {"trained": learned_from | size}

    def row(self, root: str, path: str) -> MaskRow:
        """Make one image's row; see `segmented_row`."""
        return segmented_row(
            root, path, self.recipe, lambda image: refine(image, self.regressor, self.recipe)
        )


def train_on_mask_file(
    images: str | os.PathLike[str], masks: str | os.PathLike[str], *, limit: int = 400, seed: int = 0
) -> RefinedRows:
    """Train on the surest masks of a first build.

    Args:
        images: the image folder.
        masks: the first mask file.
        limit: how many images to learn from, drawn by counter among the surer half.
        seed: of the draw.

    Raises:
        UserError: for a missing file, or one without usable masks.
    """
    reader = MaskReader(masks)
    recipe = get_recipe("hybrid_drfi")
    confidence = reader.column("confidence")
    usable = np.flatnonzero(np.asarray(confidence) > 0)
    if not len(usable):
        raise UserError(
            f"{masks} holds no mask with a confidence above 0; build masks with `masks build` first"
        )
    surest = usable[np.argsort(-np.asarray(confidence)[usable], kind="stable")][: max(20, len(usable) // 2)]
    drawn = counter_generator(seed, 0, 0, 0, purpose="refine images").permutation(len(surest))[:limit]
    paths = [reader.paths[int(row)] for row in np.sort(surest[drawn])]
    pictures = (read_image(Path(images, path), reduce_to=recipe.work_size) for path in paths)
    regressor = train_region_regressor(pictures, (reader[path] for path in paths), recipe=recipe, seed=seed)
    return RefinedRows(recipe, regressor, str(reader.attributes["content_digest"]), limit, seed)

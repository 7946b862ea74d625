"""Principal components of the feature map beside the image: what people look at first in a dense method.

Shape legend: N images, C channels, S cells per side, V picture side in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ...common.errors import UserError
from ...common.page import Picture
from ...data.images import open_images
from ...data.images.decode import decode_image
from ...data.images.inputs import Inputs, inputs_of
from ...engine.checkpoint import LAST, load_checkpoint
from ...models.backbones.base import Backbone
from ...models.backbones.build import build_backbone
from ...models.batch_statistics import reestimate_batchnorm
from ...models.preprocess import as_tensor, centre_crop, normalize, to_pixels
from .views import enlarged

SHOWN = 6  # images
# a ResNet's map is computed on a larger input than it was trained on, for a finer picture: so many times
# its training size, up to so many pixels, and at least twice the training size
ENLARGED, ENOUGH = 4, 448


def feature_pictures(folder: Path, config: dict[str, Any], images: str | None) -> list[Picture] | str:
    """Draw a few images with the principal components of their maps.

    Args:
        folder: the run folder; its last checkpoint is used.
        config: its config.json.
        images: folder or packed file; None: that of the run.

    Returns:
        Pictures, or a sentence that says why there are none (no checkpoint yet, the run's images moved).

    Raises:
        UserError: if the images that were asked for cannot be read.
    """
    if not (folder / LAST).exists():
        return f"No pictures of features: {folder} has no {LAST} yet."
    settings = config["settings"]
    try:
        root = images or settings["images"] or _root_of_masks(settings["masks"])
        backbone, size = load_backbone(folder, settings)
        pixels = _some_images(root, size, backbone.inputs)
        untrained = _untrained(settings, pixels)
    except UserError as error:
        if images is not None:
            raise
        return f"No pictures of features: {error}"
    images_shown, colours = components(backbone, pixels)
    return [
        Picture(
            np.concatenate([enlarged(tile) for tile in tiles], axis=1),
            lossy=True,
            alt="image, features, features of random weights",
        )
        for tiles in zip(images_shown, colours, components(untrained, pixels)[1], strict=True)
    ]


def _untrained(settings: dict[str, Any], pixels: Tensor) -> Backbone:
    """The run's network with random weights, its BatchNorm statistics taken from the pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        backbone = _build(settings)
    reestimate_batchnorm(backbone, [pixels], device="cpu")
    return backbone.eval()


def _build(settings: dict[str, Any]) -> Backbone:
    """The network of a run's settings, with random weights."""
    return build_backbone(
        settings["arch"],
        image_size=settings["image_size"],
        stem=settings["stem"],
        inputs=inputs_of(settings),
    )


def load_backbone(folder: Path, settings: dict[str, Any]) -> tuple[Backbone, int]:
    """Rebuild a run's backbone from its last checkpoint; with the side its pictures are computed at."""
    state = load_checkpoint(folder / LAST)["module"]
    trained = settings["image_size"]
    backbone = _build(settings)
    kept = {
        name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")
    }
    # what the method took out of the backbone, such as SiameseIM the last norm, is taken out here too
    backbone.adapt({name.removeprefix("trunk."): value for name, value in kept.items()})
    backbone.load_state_dict(kept)
    # a ViT's positions are for one size
    flexible = not hasattr(backbone, "patch_size") and not backbone.fixed_size
    return backbone.eval(), max(2 * trained, min(ENLARGED * trained, ENOUGH)) if flexible else trained


def components(backbone: Backbone, pixels: Tensor) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Colour each cell by its first three principal components over all images.

    Args:
        backbone: in evaluation mode.
        pixels: (N, in_channels, V, V) normalised.

    Returns:
        (N, V, V, 3) uint8 images, and the same of components; each component is stretched from its 2nd to
        its 98th percentile.
    """
    with torch.no_grad():
        maps = backbone(pixels)[backbone.last].float()
    number, channels, side, _ = maps.shape
    rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    centred = rows - rows.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    scores = centred @ directions[:3].T
    scores = functional.pad(scores, (0, 3 - scores.shape[1]))
    low, high = torch.quantile(scores, torch.tensor([0.02, 0.98]), dim=0)
    fractions = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    grid = fractions.reshape(number, side, side, 3).permute(0, 3, 1, 2)
    coloured = functional.interpolate(grid, size=pixels.shape[-2:], mode="nearest")
    return to_pixels(pixels, backbone.inputs), _as_bytes(coloured)


def _some_images(root: str, size: int, inputs: Inputs) -> Tensor:
    """Read images evenly spread over the sorted list as centre views, (N, C, size, size)."""
    store = open_images(root)
    paths = store.paths()
    if not paths:
        raise UserError(f"no images found in {root}: give a folder that holds images, at any depth")
    chosen = [paths[at] for at in np.linspace(0, len(paths) - 1, min(SHOWN, len(paths))).round().astype(int)]
    images = [decode_image(store.read(path).data, f"{root}/{path}", reader=inputs.reader) for path in chosen]
    return normalize(torch.stack([centre_crop(as_tensor(image), crop=size) for image in images]), inputs)


def _root_of_masks(masks: str) -> str:
    """The image folder that a mask file names."""
    from ...data.masks.reader import MaskReader

    return str(MaskReader(masks).image_root)


def _as_bytes(values: Tensor) -> npt.NDArray[np.uint8]:
    """(N, 3, V, V) in [0, 1] to (N, V, V, 3) uint8."""
    scaled: npt.NDArray[np.uint8] = (values * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return scaled

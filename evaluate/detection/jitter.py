"""Large-scale jitter: an image resized at random, then cropped and padded to a square, with its objects.

Ghiasi et al., CVPR 2021 (arXiv 2012.07177), section 3, as ViTDet trains on COCO.
Shape legend: T objects, H and W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional as pixels

from ..segmentation.samples import MEAN_COLOUR


def large_scale_jitter(
    image: Tensor,
    target: dict[str, Tensor],
    generator: np.random.Generator,
    *,
    side: int,
    scale: tuple[float, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Resize to a random share of `side`, cut a random part, pad it at the right and the bottom.

    Args:
        image: (3, H, W) uint8.
        target: `boxes` (T, 4), `labels` (T,), perhaps `masks` (T, H, W).
        generator: of the three draws.
        side: of the result, pixels.
        scale: least and most of the image's longer side, as fractions of `side`.

    Returns:
        (3, side, side) uint8, padded with the mean colour, and the objects that are left in it, perhaps none;
        boxes are those of the masks that remain, where there are masks.
    """
    size = image.shape[1:]
    share, top, left = generator.random(3)
    factor = (scale[0] + (scale[1] - scale[0]) * share) * side / max(size)
    resized = [max(1, round(length * factor)) for length in size]
    y, x = (
        int(place * (max(0, length - side) + 1)) for place, length in zip((top, left), resized, strict=True)
    )
    rows, columns = slice(y, y + side), slice(x, x + side)

    image = pixels.resize(image, resized, antialias=True)[:, rows, columns]
    bottom, right = side - image.shape[1], side - image.shape[2]
    image = torch.stack(
        [
            functional.pad(plane, (0, right, 0, bottom), value=grey)
            for plane, grey in zip(image, MEAN_COLOUR, strict=True)
        ]
    )
    stretch = torch.tensor([resized[1] / size[1], resized[0] / size[0]]).repeat(2)
    boxes = (target["boxes"] * stretch - torch.tensor([x, y, x, y])).clamp(0, side)
    boxes = boxes.minimum(torch.tensor([resized[1] - x, resized[0] - y]).repeat(2))
    kept = (boxes[:, 2:] - boxes[:, :2] > 0).all(dim=1)
    moved = {"boxes": boxes, "labels": target["labels"]}
    if "masks" in target:
        masks = pixels.resize(target["masks"], resized, interpolation=pixels.InterpolationMode.NEAREST)
        moved["masks"] = functional.pad(masks[:, rows, columns], (0, right, 0, bottom))
        kept &= moved["masks"].flatten(1).amax(dim=1) > 0
    moved = {name: values[kept] for name, values in moved.items()}
    if "masks" in moved and len(moved["masks"]):
        # torchvision names the last pixel inside, boxes here end behind it
        moved["boxes"] = masks_to_boxes(moved["masks"]) + torch.tensor([0, 0, 1, 1])
    return image, moved

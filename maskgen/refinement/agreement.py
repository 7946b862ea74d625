"""Whether a network has learned anything: does it agree with first masks that it has not seen?

A network that has learned what foreground looks like finds it in images that were held out, more often than
one answer for all images does. One that has only learned its own images by heart, or nothing, does not.

Shapes: N held-out images, S side of the network's square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.iou import iou
from .network import ForegroundNetwork
from .prediction import foreground_probability
from .samples import FirstMasks

MARGIN = 0.05  # mean IoU by which the network must be nearer to unseen masks than one answer for all
LEVELS = np.arange(0.1, 1.0, 0.1)  # thresholds of the one answer; the best counts


@dataclass(frozen=True)
class Agreement:
    """How near a network and one answer for all images come to first masks that neither has seen.

    Attributes:
        images: how many were held out.
        network: mean IoU of the network's masks with them, each weighing by its confidence.
        constant: the same of the mean of the training masks, cut where that is best.
    """

    images: int
    network: float
    constant: float

    @property
    def has_learned(self) -> bool:
        """Whether the network is clearly nearer."""
        return self.network >= self.constant + MARGIN

    def sentence(self) -> str:
        """Both figures in words."""
        return (
            f"on {self.images} images that were held out the network and the first masks have a mean IoU of "
            f"{self.network:.3f}; one mask for all images has {self.constant:.3f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For the network's file."""
        return {"images": self.images, "network": self.network, "constant": self.constant}


def judge(network: ForegroundNetwork, train: FirstMasks, held_out: FirstMasks) -> Agreement:
    """Compare a network with masks it has not seen.

    Args:
        network: in eval mode, on the CPU.
        train: what it was trained on.
        held_out: at least one image.
    """
    masks = held_out.masks > 127
    weight = np.maximum(held_out.confidence, 1e-3)
    size = masks.shape[1]
    found = [foreground_probability(image, network, size) > 0.5 for image in held_out.images]
    mean = train.masks.mean(axis=0) / 255
    constant = max(_mean_iou([mean > level] * len(masks), masks, weight) for level in LEVELS)
    return Agreement(len(masks), _mean_iou(found, masks, weight), constant)


def _mean_iou(found: list[NDArray[np.bool_]], masks: NDArray[np.bool_], weight: NDArray[np.float32]) -> float:
    """Mean over images, each by its weight."""
    values = [iou(first, second) for first, second in zip(found, masks, strict=True)]
    return float(np.average(values, weights=weight))

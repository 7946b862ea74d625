"""Pictures of predictions beside the truth, for reports.

Shape legend: H and W pixels, T objects.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import torch
from torch import Tensor

from ..common.types import Pixels
from .segmentation.data import IGNORE


def palette(classes: int) -> np.ndarray:
    """(256, 3) uint8 colours: class 0 dark, the others spread over the hues, void white."""
    colours = np.full((256, 3), 255, np.uint8)
    colours[0] = (40, 40, 40)
    for index in range(1, classes):
        # the golden ratio keeps the hues of neighbouring numbers apart
        hue = (index * 0.618034) % 1.0
        colours[index] = np.round(255 * np.asarray(colorsys.hsv_to_rgb(hue, 0.75, 0.95)))
    colours[IGNORE] = (255, 255, 255)
    return colours


def segmentation_picture(image: Tensor, truth: Tensor, predicted: Tensor, classes: int) -> Pixels:
    """Input, truth and prediction side by side: (H, 3 W + 8, 3) uint8; void is white in the truth.

    Args:
        image: (3, H, W) uint8.
        truth, predicted: (H, W) class numbers.
    """
    colours = palette(classes)
    panels = [
        image.permute(1, 2, 0).cpu().numpy(),
        colours[truth.cpu().numpy()],
        colours[predicted.to(torch.uint8).cpu().numpy()],
    ]
    gap = np.full((image.shape[1], 4, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)


def detection_picture(
    image: Tensor, truth: np.ndarray, boxes: np.ndarray, scores: np.ndarray, masks: np.ndarray | None = None
) -> Pixels:
    """True boxes (green, left) and detections above a score of .3 (orange, right): (H, 2 W + 4, 3) uint8.

    Args:
        image: (3, H, W) uint8.
        truth: (T, 4) boxes.
        boxes, scores: detections.
        masks: (D, H, W) bool, tinted.
    """
    left = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    right = left.copy()
    for x1, y1, x2, y2 in np.round(truth).astype(int).tolist():
        cv2.rectangle(left, (x1, y1), (x2, y2), (40, 200, 60), 2)
    for index in np.flatnonzero(scores >= 0.3):
        if masks is not None:
            right[masks[index]] = (right[masks[index]] * 0.5 + np.array([127, 70, 0])).astype(np.uint8)
        x1, y1, x2, y2 = np.round(boxes[index]).astype(int).tolist()
        cv2.rectangle(right, (x1, y1), (x2, y2), (255, 140, 0), 2)
        cv2.putText(
            right, f"{scores[index]:.2f}", (x1 + 2, y1 + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 140, 0), 1
        )
    gap = np.full((left.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)

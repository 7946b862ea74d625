"""What the network learns from: images and their first masks in memory, changed anew each time they are seen.

Shape legend: N images, B of a batch, S side of the square input.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common.randomness import counter_generator, reused_generator
from ...common.terminal.progress import Advance
from ...common.types import Pixels
from ...data.images.decode import ImageError
from ...data.images.store import OriginalImages, read_pixels
from ...data.masks.reader import MaskReader
from ..pipeline import resize_to_work_size

ZOOM = (0.7, 1.3)
SHIFT = 0.15  # of the side, at most
GAIN = 0.2  # of each colour channel, at most
BRIGHTNESS = 0.2


@dataclass(frozen=True)
class FirstMasks:
    """Images with masks to learn from, at the network's size.

    Attributes:
        paths: N of them, relative to the image folder.
        images: (N, S, S, 3) uint8 RGB.
        masks: (N, S, S) uint8, 255 where all is foreground.
        confidence: (N,) float32 in [0, 1].
    """

    paths: Sequence[str]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    confidence: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, rows: NDArray[np.int64]) -> FirstMasks:
        """Some of them."""
        paths = [self.paths[int(row)] for row in rows]
        return FirstMasks(paths, self.images[rows], self.masks[rows], self.confidence[rows])


def squared(work: Pixels, size: int) -> Pixels:
    """Bring a working image to a square that the network sees, (S, S, 3) uint8."""
    larger = max(work.shape[:2]) > size
    square = cv2.resize(work, (size, size), interpolation=cv2.INTER_AREA if larger else cv2.INTER_LINEAR)
    return np.asarray(square, np.uint8)


def read_first_masks(
    originals: OriginalImages,
    reader: MaskReader,
    paths: Sequence[str],
    *,
    work_size: int,
    size: int,
    advance: Advance,
) -> FirstMasks:
    """Read some images and their masks; images that have become unreadable are left out.

    Args:
        originals: the folder, archives or store that they are in.
        reader: of the mask file.
        paths: which, all with a mask.
        work_size: long side of the working image, pixels.
        size: side S of the square.
        advance: called with 1 after each image.
    """
    images = np.empty((len(paths), size, size, 3), np.uint8)
    masks = np.empty((len(paths), size, size), np.uint8)
    kept: list[str] = []
    for path in paths:
        advance(1)
        try:
            image = read_pixels(originals, path, reduce_to=work_size)
        except ImageError:
            continue
        mask = reader[path].astype(np.uint8) * 255
        images[len(kept)] = squared(resize_to_work_size(image, work_size), size)
        masks[len(kept)] = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA)
        kept.append(path)
    confidence = np.array([reader.confidence(path) for path in kept], np.float32)
    return FirstMasks(kept, images[: len(kept)], masks[: len(kept)], np.nan_to_num(confidence, nan=1.0))


@dataclass
class SampleBatch:
    """A batch: (B, 3, S, S) float32 in [0, 1], (B, 1, S, S) float32 in [0, 1], (B,) float32."""

    images: Tensor
    masks: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.images)


class SampleSource:
    """Batches for `engine.loop.fit`; every draw depends on (seed, epoch, image) alone."""

    def __init__(
        self, first: FirstMasks, *, batch_size: int, least_weight: float, seed: int, device: torch.device
    ) -> None:
        """Take the images to train on; the last, incomplete batch of an epoch is left out."""
        self.first, self.batch_size = first, min(batch_size, len(first))
        self.seed, self.device = seed, device
        self.weights = np.clip(first.confidence, least_weight, 1)
        self.wait_seconds = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.first) // self.batch_size

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[SampleBatch]:
        """Give the epoch's batches from `first_step` on."""
        order = counter_generator(self.seed, epoch, 0, 0, purpose="refine order").permutation(len(self.first))
        for step in range(first_step, self.steps_per_epoch):
            start = time.perf_counter()
            batch = self._batch(epoch, order[step * self.batch_size : (step + 1) * self.batch_size])
            self.wait_seconds = time.perf_counter() - start
            yield batch

    def _batch(self, epoch: int, rows: NDArray[np.int64]) -> SampleBatch:
        """The images of some rows, each changed by its own draw."""
        size = self.first.images.shape[1]
        images = np.empty((len(rows), size, size, 3), np.float32)
        masks = np.empty((len(rows), 1, size, size), np.float32)
        for place, row in enumerate(rows.tolist()):
            generator = reused_generator(self.seed, epoch, row, 0, purpose="refine view")
            images[place], masks[place, 0] = changed(self.first.images[row], self.first.masks[row], generator)
        return SampleBatch(
            torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device, non_blocking=True),
            torch.from_numpy(masks).to(self.device, non_blocking=True),
            torch.from_numpy(self.weights[rows]).to(self.device, non_blocking=True),
        )


def changed(
    image: Pixels, mask: NDArray[np.uint8], generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mirror, zoom, shift and recolour an image, and move its mask along.

    Args:
        image: (S, S, 3) uint8.
        mask: (S, S) uint8, 255 for foreground.
        generator: nine numbers are drawn from it.

    Returns:
        (S, S, 3) and (S, S) float32 in [0, 1]; what lies outside the image is mirrored at its edge.
    """
    size = image.shape[0]
    draws = generator.random(9)
    zoom = np.exp(np.log(ZOOM[0]) + draws[0] * np.log(ZOOM[1] / ZOOM[0]))
    stretch = np.exp((draws[1] - 0.5) * 0.3)  # the sides by up to 16 % each way
    across, down = zoom * np.sqrt(stretch), zoom / np.sqrt(stretch)
    if draws[2] < 0.5:
        across = -across
    centre = (size - 1) / 2
    moved_x, moved_y = (draws[3:5] * 2 - 1) * SHIFT * size
    transform = np.array([[across, 0, centre - across * centre + moved_x],
                          [0, down, centre - down * centre + moved_y]])  # fmt: skip
    warped = cv2.warpAffine(
        image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    moved = cv2.warpAffine(
        mask, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    gain = 1 + (draws[5:8] * 2 - 1) * GAIN
    offset = (draws[8] * 2 - 1) * BRIGHTNESS
    coloured = warped.astype(np.float32) * (gain / 255).astype(np.float32) + np.float32(offset)
    return np.clip(coloured, 0, 1), moved.astype(np.float32) / np.float32(255)

"""Draws of torchvision's detectors by (seed, step, image), and losses over the whole batch.

torchvision draws the size of every image and the anchors and regions that train from torch's generator, pads
a process's images to the largest of them, and takes means over what a process has drawn. Here an image's
draws and its padding do not depend on which process holds it, and the mean over the processes' losses is the
mean over the whole batch; so a training of several processes is that of one, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ...common.randomness import counter_generator
from ...engine.distributed import reduce_sum, world_size
from ..batches import TaskBatch
from ..processes import largest_of_all

# what a loss of torchvision's is divided by: the anchors drawn, the regions drawn, or the objects among them
_DIVIDED_BY = {
    "loss_objectness": 0,
    "loss_rpn_box_reg": 0,
    "loss_classifier": 1,
    "loss_box_reg": 1,
    "loss_mask": 2,
}


class Counter:
    """Where a training is: the seed, the step, and which images of the batch are here."""

    def __init__(self, seed: int) -> None:
        """Stand at the first batch."""
        self.seed, self.step, self.first = seed, 0, 0

    @contextmanager
    def drawing(self, image: int, purpose: str) -> Iterator[None]:
        """Seed torch's generators for the draws of this process's `image`th image; put them back afterwards.

        What the network draws itself, such as drop path, is drawn alike by all processes and must stay so.
        """
        draw = counter_generator(self.seed, self.step, self.first + image, 0, purpose)
        on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        devices = [torch.cuda.current_device()] if on_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(draw.integers(2**63)))
            yield


class CountedTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's resizing and padding, with a size drawn by counter and the padding of the whole batch."""

    def __init__(self, plain: GeneralizedRCNNTransform, counter: Counter) -> None:
        """Take a transform's settings."""
        super().__init__(
            plain.min_size,
            plain.max_size,
            plain.image_mean,
            plain.image_std,
            plain.size_divisible,
            plain.fixed_size,
            _skip_resize=plain._skip_resize,
        )
        self.counter, self.drawn = counter, 0

    def torch_choice(self, k: Any) -> int:
        """Draw the short side of the next image; called once for each in training."""
        with self.counter.drawing(self.drawn, "short side"):
            side: int = super().torch_choice(k)
        self.drawn += 1
        return side

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        """The sizes that images are padded to."""
        sizes: list[int] = super().max_by_axis(the_list)
        return largest_of_all(sizes) if self.training else sizes


class CountedSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """torchvision's choice of anchors or regions, drawn by counter for each image.

    `taken` is how many were drawn, and how many of them are objects: (2,) int64 on their device.
    """

    def __init__(self, plain: BalancedPositiveNegativeSampler, counter: Counter, purpose: str) -> None:
        """Take a sampler's settings."""
        super().__init__(plain.batch_size_per_image, plain.positive_fraction)
        self.counter, self.purpose = counter, purpose
        self.taken = torch.zeros(2, dtype=torch.int64)

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the objects and of the background that were chosen, one for each image."""
        objects: list[Tensor] = []
        background: list[Tensor] = []
        for image, matched in enumerate(matched_idxs):
            with self.counter.drawing(image, self.purpose):
                chosen = super().__call__([matched])
            objects += chosen[0]
            background += chosen[1]
        found = torch.cat(objects).sum()
        self.taken = torch.stack([found + torch.cat(background).sum(), found])
        return objects, background


class CountedDraws:
    """The counted parts of one detector."""

    def __init__(self, detector: Any, seed: int) -> None:
        """Put them into the detector."""
        self._counter = Counter(seed)
        detector.transform = self._transform = CountedTransform(detector.transform, self._counter)
        detector.transform.train(detector.training)
        self._anchors = CountedSampler(detector.rpn.fg_bg_sampler, self._counter, "anchors")
        self._regions = CountedSampler(detector.roi_heads.fg_bg_sampler, self._counter, "regions")
        detector.rpn.fg_bg_sampler = self._anchors
        detector.roi_heads.fg_bg_sampler = self._regions

    def begin(self, batch: TaskBatch) -> None:
        """A batch begins."""
        self._counter.step, self._counter.first, self._transform.drawn = batch.number, batch.first, 0

    def weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of this process by its part of what they are means over; with one process as they are."""
        if world_size() == 1:
            return losses
        drawn = torch.cat([self._anchors.taken[:1], self._regions.taken]).double()
        weights = drawn * world_size() / reduce_sum(drawn).clamp(min=1)
        return {
            name: loss * weights[_DIVIDED_BY[name]].to(loss.dtype) if name in _DIVIDED_BY else loss
            for name, loss in losses.items()
        }


def count_draws(detector: nn.Module, seed: int) -> CountedDraws:
    """Let a detector of torchvision's draw by (seed, step, image); changed in place.

    Args:
        detector: Faster or Mask R-CNN.
        seed: of the run.
    """
    return CountedDraws(detector, seed)

"""What a loader worker does: make chunks of a batch, from encoded images and masks to uint8 views.

A chunk is a stretch of one process's share of a global batch. It depends on (seed, epoch, step, chunk) alone.

Shape legend: n images of a chunk, S view side in pixels, G occupancy cells per side, P patch side in pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from . import images, photometric, views
from .batch import Batch, Needs
from .errors import UserError
from .geometry import stack
from .images import ImageError
from .imagestore import ImageStore
from .maskfile import MaskReader
from .maskformat import decode_path
from .maskintegral import MaskIntegral
from .randomness import counter_generator
from .selection import Selection

MAX_REPLACED = 20  # images in a row that may fail before the run stops: then it is the disk, not an image
CHECKED = 32  # images whose size is compared with the mask file's before the first step


class Task(NamedTuple):
    """One chunk: positions start to stop of the step's global batch."""

    epoch: int
    step: int
    start: int
    stop: int


class ChunkMaker(Dataset[Batch | UserError]):
    """Makes chunks by task; sent to every worker, so it holds no open handle.

    Args:
        store: the images.
        masks: the mask file, or None.
        selection: paths, and which have a mask.
        needs: what to make.
        seed: the run's seed.
        batch_size: global batch.
        scaled_decode: decode large JPEGs at a half, quarter or eighth where every crop allows it.
    """

    def __init__(
        self,
        store: ImageStore,
        masks: MaskReader | None,
        selection: Selection,
        needs: Needs,
        *,
        seed: int,
        batch_size: int,
        scaled_decode: bool = True,
    ) -> None:
        self.store = store
        self.masks = masks if needs.masks else None
        self.selection = selection
        self.needs = needs
        self.seed = seed
        self.batch_size = batch_size
        self.scaled_decode = scaled_decode
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The epoch's permutation of all images, the same on every rank."""
        if self._order is None or self._order[0] != epoch:
            generator = counter_generator(self.seed, epoch, 0, 0, "order")
            self._order = epoch, generator.permutation(len(self.selection.paths))
        return self._order[1]

    def check_masks(self) -> None:
        """Look at a few images spread over the list, so that masks of another folder are refused at once.

        Every other image is checked when it is read.

        Raises:
            MaskError: if an image has another size than its mask was made for.
        """
        count = len(self.selection.paths)
        for index in np.unique(np.linspace(0, count - 1, min(count, CHECKED), dtype=np.int64)).tolist():
            path = decode_path(bytes(self.selection.paths[index]))
            try:
                size = self.store.read(path).image_size
            except ImageError:  # replaced and reported when it is its turn
                continue
            self._mask(path, index, size)

    def __getitem__(self, task: Task) -> Batch | UserError:
        """Make one chunk; a user's mistake is returned, so that it crosses the process border as it is."""
        begin = task.step * self.batch_size
        try:
            return self._make(task, self.order(task.epoch)[begin + task.start : begin + task.stop])
        except UserError as error:
            return error

    def _make(self, task: Task, indices: npt.NDArray[np.int64]) -> Batch:
        """Fill the arrays of a chunk, sample by sample."""
        arrays = _Arrays(self.needs, len(indices))
        failures: list[str] = []
        for slot, index in enumerate(indices.tolist()):
            self._fill(arrays, slot, task.epoch, index, failures)
        return arrays.batch(task, failures)

    def _fill(self, arrays: _Arrays, slot: int, epoch: int, index: int, failures: list[str]) -> None:
        """Make one sample; an image that fails is replaced by the next one in the path list.

        The replacement depends on nothing but the data, so a resumed run repeats it; `failures` says what
        happened, and the loader logs and counts it.
        """
        count = len(self.selection.paths)
        for attempt in range(min(MAX_REPLACED, count)):
            chosen = (index + attempt) % count
            try:
                self._sample(arrays, slot, epoch, chosen)
            except ImageError as error:
                failures.append(str(error))
            else:
                return
        raise UserError(
            f"{min(MAX_REPLACED, count)} images in a row cannot be used, the last: {failures[-1]}; "
            "is the image folder still there?"
        )

    def _sample(self, arrays: _Arrays, slot: int, epoch: int, index: int) -> None:
        """Read, draw, decode once, cut all views."""
        needs, counter = self.needs, views.Counter(self.seed, epoch, index)
        path = decode_path(bytes(self.selection.paths[index]))
        data, size = self.store.read(path)
        mask = self._mask(path, index, size)
        draws = views.draw_views(needs, counter, size, mask)
        jigsaw = views.draw_jigsaw(needs.jigsaw, counter, size) if needs.jigsaw is not None else None
        side = views.shortest_side(needs, draws, jigsaw, size) if self.scaled_decode else None
        image = images.decode_image(data, path, reduce_to=side)
        for number, (policy, draw) in enumerate(zip(needs.views, draws, strict=True)):
            views.cut_view(image, size, draw.geometry, policy.size, arrays.views[number][slot])
            if mask is not None and needs.grid is not None:
                arrays.occupancy[number][slot] = mask.crop(draw.geometry, needs.grid)
            row = photometric.draw_row(counter.generator(number, "photometric"), policy.photometric)
            arrays.photometric[number][slot] = row
        if jigsaw is not None:
            self._jigsaw(arrays, slot, counter, image, size, jigsaw)
        arrays.index[slot] = index
        arrays.image_size[slot] = size
        arrays.geometry[slot] = [draw.geometry for draw in draws]
        arrays.fallback[slot] = [draw.fallback for draw in draws]
        arrays.has_mask[slot] = mask is not None
        arrays.rotation[slot] = counter.generator(0, "rotation").integers(4)

    def _mask(self, path: str, index: int, size: tuple[int, int]) -> MaskIntegral | None:
        """The image's mask, unpacked once, after checking that it was made for this image."""
        if self.masks is None or not self.selection.has_mask[index]:
            return None
        self.masks.check_image(path, size)
        return self.masks.integral(path)

    def _jigsaw(
        self,
        arrays: _Arrays,
        slot: int,
        counter: views.Counter,
        image: views.Pixels,
        size: tuple[int, int],
        draw: views.JigsawDraw,
    ) -> None:
        """Cut the patches and draw each one's photometric row."""
        policy = self.needs.jigsaw
        assert policy is not None
        arrays.patches[slot] = views.cut_patches(image, size, policy, draw)
        arrays.permutation[slot] = draw.permutation
        for cell in range(policy.grid**2):
            generator = counter.generator(cell, "patch photometric")
            arrays.patch_photometric[slot, cell] = photometric.draw_row(generator, policy.photometric)


class _Arrays:
    """The arrays of a chunk while it is filled; images lie as (n, S, S, 3), torch's channels_last."""

    def __init__(self, needs: Needs, count: int) -> None:
        self.needs = needs
        self.index = np.zeros(count, np.int64)
        self.image_size = np.zeros((count, 2), np.int32)
        self.views = [np.empty((count, policy.size, policy.size, 3), np.uint8) for policy in needs.views]
        self.photometric = [np.zeros((count, photometric.COLUMNS), np.float32) for _ in needs.views]
        grid = needs.grid or 0
        self.occupancy = [np.zeros((count, grid, grid), np.float32) for _ in needs.views]
        self.geometry: list[list[Any]] = [[] for _ in range(count)]
        self.fallback = np.zeros((count, len(needs.views)), np.bool_)
        self.has_mask = np.zeros(count, np.bool_)
        self.rotation = np.zeros(count, np.int64)
        jigsaw = needs.jigsaw
        cells, patch = (jigsaw.grid**2, jigsaw.patch) if jigsaw is not None else (0, 0)
        self.patches = np.empty((count, cells, patch, patch, 3), np.uint8)
        self.patch_photometric = np.zeros((count, cells, photometric.COLUMNS), np.float32)
        self.permutation = np.zeros((count, cells), np.int64)

    def batch(self, task: Task, failures: list[str]) -> Batch:
        """Hand the arrays over as tensors, without a copy."""
        masks, jigsaw = self.needs.masks, self.needs.jigsaw is not None
        return Batch(
            index=torch.from_numpy(self.index),
            image_size=torch.from_numpy(self.image_size),
            views=tuple(torch.from_numpy(view).permute(0, 3, 1, 2) for view in self.views),
            geometry=tuple(stack(column) for column in zip(*self.geometry, strict=True)),
            photometric=tuple(torch.from_numpy(rows) for rows in self.photometric),
            occupancy=tuple(torch.from_numpy(grid) for grid in self.occupancy) if masks else (),
            has_mask=torch.from_numpy(self.has_mask) if masks else None,
            fallback=torch.from_numpy(self.fallback),
            patches=torch.from_numpy(self.patches).permute(0, 1, 4, 2, 3) if jigsaw else None,
            patch_photometric=torch.from_numpy(self.patch_photometric) if jigsaw else None,
            permutation=torch.from_numpy(self.permutation) if jigsaw else None,
            rotation=torch.from_numpy(self.rotation),
            epoch=task.epoch,
            step=task.step,
            failures=tuple(failures),
        )

"""What a loader worker does: make chunks of a batch, from encoded images and masks to uint8 views.

A chunk is a stretch of one process's share of a global batch. It depends on (seed, epoch, step, chunk) alone.

Shape legend: n images of a chunk, C channels, S view side in pixels, G occupancy cells per side, P patch side
in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, get_worker_info

from ...common.errors import UserError
from ...common.randomness import counter_generator
from ..geometry import ViewGeometry
from ..images import decode as images
from ..images.decode import Header, ImageError
from ..images.inputs import RGB, Inputs
from ..images.store import ImageStore
from ..masks.integral import MaskIntegral
from ..masks.reader import MaskReader
from ..path_keys import decode_path
from . import photometric, views
from .batch import Batch, Needs
from .selection import Selection

MAX_REPLACED = 20  # images in a row that may fail before the run stops: then it is the disk, not an image
AHEAD_BYTES = 8 << 20  # of encoded images that a worker has read and drawn before it decodes them
CHECKED = 32  # images whose size is compared with the mask file's before the first step


class Task(NamedTuple):
    """One chunk: positions start to stop of the step's global batch."""

    epoch: int
    step: int
    start: int
    stop: int


class ChunkMaker(Dataset[object]):
    """Makes chunks by task; sent to every worker, so it holds no open handle.

    Args:
        store: the images.
        masks: the mask file, or None.
        selection: paths, and the rows of their masks.
        needs: what to make.
        seed: the run's seed.
        batch_size: global batch.
        inputs: how images are read.
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
        inputs: Inputs = RGB,
    ) -> None:
        self.store = store
        self.masks = masks if needs.masks else None
        self.selection = selection
        self.needs = needs
        self.seed = seed
        self.batch_size = batch_size
        self.inputs = inputs
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The epoch's permutation of all images, the same on every rank."""
        if self._order is None or self._order[0] != epoch:
            generator = counter_generator(self.seed, epoch, 0, 0, "order")
            self._order = epoch, generator.permutation(len(self.selection.paths))
        return self._order[1]

    def check_masks(self) -> None:
        """Look at a few images, so that masks of another folder are refused at once; others as they are read.

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
            self.mask(path, index, size)

    def __getitem__(self, task: Task) -> Chunk | UserError:
        """Make one chunk; a user's mistake is returned, so that it crosses the process border as it is."""
        begin, order = task.step * self.batch_size, self.order(task.epoch)
        # what goes past the end, in the last batch of `LoaderOptions.every_image`, is the epoch's beginning
        places = np.arange(begin + task.start, begin + task.stop) % len(order)
        try:
            return self._make(task, order[places])
        except UserError as error:
            return error

    def _make(self, task: Task, indices: npt.NDArray[np.int64]) -> Chunk:
        """Fill a chunk: read and draw some samples, then decode and cut the same ones.

        The small steps of one sample, between two decodes, find the processor's caches full of pixels; many
        in a row make the whole worker faster (docs/speed.md).
        """
        chunk = Chunk(self.needs, task, len(indices), self.inputs.in_channels)
        waiting: list[tuple[int, Iterator[int], _Drawn]] = []
        for slot, index in enumerate(indices.tolist()):
            candidates = self._candidates(index)
            waiting.append((slot, candidates, self._draw_first(chunk, slot, candidates)))
            if sum(len(drawn.data) for *_, drawn in waiting) > AHEAD_BYTES:
                self._cut_all(chunk, waiting)
                waiting = []
        self._cut_all(chunk, waiting)
        return chunk

    def _candidates(self, index: int) -> Iterator[int]:
        """An image and those that take its place where it fails: the next ones in the path list.

        They follow from the data alone, so a resumed run repeats them; the loader logs `Chunk.failures`.
        """
        count = len(self.selection.paths)
        return iter([(index + attempt) % count for attempt in range(min(MAX_REPLACED, count))])

    def _draw_first(self, chunk: Chunk, slot: int, candidates: Iterator[int]) -> _Drawn:
        """Draw the first candidate that can be read."""
        for index in candidates:
            try:
                return self._draw(chunk, slot, index)
            except ImageError as error:
                chunk.failures.append(str(error))
        raise UserError(
            f"{min(MAX_REPLACED, len(self.selection.paths))} images in a row cannot be used, the last: "
            f"{chunk.failures[-1]}; is the image folder still there?"
        )

    def _cut_all(self, chunk: Chunk, waiting: list[tuple[int, Iterator[int], _Drawn]]) -> None:
        """Decode and cut the drawn samples; one that cannot be decoded gives way to its next candidate."""
        for slot, candidates, drawn in waiting:
            while not self._cut(chunk, slot, drawn):
                drawn = self._draw_first(chunk, slot, candidates)

    def _draw(self, chunk: Chunk, slot: int, index: int) -> _Drawn:
        """Read one image and its mask and draw its views: all of a sample but the pixels."""
        needs, counter = self.needs, views.Counter(self.seed, chunk.task.epoch, index)
        path = decode_path(self.selection.paths.item(index))
        data, size, header = self.store.read(path)
        mask = self.mask(path, index, size)
        draws = views.draw_views(needs, counter, size, mask)
        for number, (policy, draw) in enumerate(zip(needs.views, draws, strict=True)):
            if needs.grid is not None:
                chunk.occupancy[number, slot] = mask.crop(draw.geometry, needs.grid) if mask else 0.0
            generator = counter.generator(number, "photometric")
            chunk.photometric[number, slot] = photometric.draw_row(generator, policy.photometric, policy.size)
            chunk.geometry[number, :, slot] = draw.geometry
            chunk.fallback[slot, number] = draw.fallback
        jigsaw = self._draw_jigsaw(chunk, slot, counter, size)
        chunk.index[slot] = index
        chunk.image_size[slot] = size
        chunk.has_mask[slot] = mask is not None
        chunk.rotation[slot] = counter.generator(0, "rotation").integers(4)
        side = views.shortest_side(needs, draws, jigsaw, size)
        return _Drawn(path, data, size, header, side, draws, jigsaw)

    def _cut(self, chunk: Chunk, slot: int, drawn: _Drawn) -> bool:
        """Decode a drawn sample once and cut all its views; say whether it could be decoded."""
        try:
            image = images.decode_image(
                drawn.data,
                drawn.path,
                reduce_to=drawn.side,
                header=drawn.header,
                reader=self.inputs.reader,
            )
        except ImageError as error:
            chunk.failures.append(str(error))
            return False
        for number, (policy, draw) in enumerate(zip(self.needs.views, drawn.draws, strict=True)):
            pixels, crop_filter = chunk.pixels[number][slot], policy.crop_filter
            views.cut_view(image, drawn.size, draw.geometry, policy.size, pixels, crop_filter=crop_filter)
        if self.needs.jigsaw is not None and drawn.jigsaw is not None:
            patches = views.cut_patches(image, drawn.size, self.needs.jigsaw, drawn.jigsaw)
            chunk.patches[slot] = torch.from_numpy(patches)
        return True

    def mask(self, path: str, index: int, size: tuple[int, int]) -> MaskIntegral | None:
        """The image's mask, unpacked once, after checking that it was made for this image."""
        row = self.selection.rows.item(index)
        if self.masks is None or row < 0:
            return None
        return self.masks.integral(path, size, row=row)

    def _draw_jigsaw(
        self, chunk: Chunk, slot: int, counter: views.Counter, size: tuple[int, int]
    ) -> views.JigsawDraw | None:
        """Draw where the patches lie, their order, and each one's photometric row."""
        policy = self.needs.jigsaw
        if policy is None:
            return None
        draw = views.draw_jigsaw(policy, counter, size)
        chunk.permutation[slot] = draw.permutation
        for cell in range(policy.grid**2):
            number = cell if policy.photometric_per_patch else 0
            generator = counter.generator(number, "patch photometric")
            row = photometric.draw_row(generator, policy.photometric, policy.image_size)
            chunk.patch_photometric[slot, cell] = row
        return draw


class _Drawn(NamedTuple):
    """A sample before its pixels: the encoded image, and where its views lie."""

    path: str
    data: bytes
    size: tuple[int, int]  # upright (H, W)
    header: Header | None
    side: int  # what a reduced decode must keep, pixels
    draws: list[views.Draw]
    jigsaw: views.JigsawDraw | None


class Chunk:
    """The arrays of a chunk, filled by a worker and read by the loader's process.

    Images are tensors, which cross the process border through shared memory; everything else is small and
    goes through the pipe, because each shared tensor costs a file descriptor (a thousand are allowed).
    They lie as (n, S, S, C), torch's channels_last.
    """

    def __init__(self, needs: Needs, task: Task, count: int, channels: int) -> None:
        self.needs = needs
        self.task = task
        self.failures: list[str] = []
        self.views = [_pixels(count, policy.size, policy.size, channels) for policy in needs.views]
        self.pixels = [view.numpy() for view in self.views]  # the same memory
        jigsaw = needs.jigsaw
        cells, patch = (jigsaw.grid**2, jigsaw.patch) if jigsaw is not None else (0, 0)
        self.patches = _pixels(count, cells, patch, patch, channels)
        self.index = np.zeros(count, np.int64)
        self.image_size = np.zeros((count, 2), np.int32)
        self.geometry = np.zeros((len(needs.views), 6, count), np.int32)
        self.photometric = np.zeros((len(needs.views), count, photometric.COLUMNS), np.float32)
        self.patch_photometric = np.zeros((count, cells, photometric.COLUMNS), np.float32)
        self.occupancy = np.zeros((len(needs.views), count, needs.grid or 0, needs.grid or 0), np.float32)
        self.fallback = np.zeros((count, len(needs.views)), np.bool_)
        self.has_mask = np.zeros(count, np.bool_)
        self.permutation = np.zeros((count, cells), np.int64)
        self.rotation = np.zeros(count, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pixels": []}  # the reader has the tensors

    def pin_memory(self) -> Chunk:
        """Pin the images; torch's DataLoader calls this by name."""
        self.views = [view.pin_memory() for view in self.views]
        self.patches = self.patches.pin_memory()
        return self


def _pixels(*shape: int) -> torch.Tensor:
    """Unset uint8 pixels; in a worker already in the shared memory into which torch would copy them."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    new_shared: Any = torch.UntypedStorage._new_shared  # torch's own collate function takes it, without types
    return torch.empty(0, dtype=torch.uint8).set_(new_shared(math.prod(shape))).view(shape)


def join(chunks: list[Chunk]) -> Batch:
    """Join the chunks of one step, in order, into a batch of uint8 views."""
    first = chunks[0]
    masks, jigsaw = first.needs.masks, first.needs.jigsaw is not None

    def numbers(name: str, axis: int = 0) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(chunk, name) for chunk in chunks], axis))

    def pictures(tensors: list[torch.Tensor]) -> torch.Tensor:
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    geometry = numbers("geometry", 2)
    return Batch(
        index=numbers("index"),
        image_size=numbers("image_size"),
        views=tuple(
            pictures(list(parts)).permute(0, 3, 1, 2)
            for parts in zip(*(chunk.views for chunk in chunks), strict=True)
        ),
        geometry=tuple(ViewGeometry(*view[:4], *view[4:].bool()) for view in geometry),
        photometric=tuple(numbers("photometric", 1)),
        occupancy=tuple(numbers("occupancy", 1)) if masks else (),
        has_mask=numbers("has_mask") if masks else None,
        fallback=numbers("fallback"),
        patches=pictures([chunk.patches for chunk in chunks]).permute(0, 1, 4, 2, 3) if jigsaw else None,
        patch_photometric=numbers("patch_photometric") if jigsaw else None,
        permutation=numbers("permutation") if jigsaw else None,
        rotation=numbers("rotation"),
        epoch=first.task.epoch,
        step=first.task.step,
        failures=tuple(failure for chunk in chunks for failure in chunk.failures),
    )

"""The loader: images and masks in, augmented batches on the device out.

Workers make chunks of uint8 views (worker.py, stream.py); this process joins them, moves them to the device
and augments them there (photometric.py). What a batch holds depends on (seed, epoch, step) alone, never on
the number of workers or processes, so a resumed run draws the same crops.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...common.errors import UserError
from ...common.system.processor import usable_cores
from ..images import open_images
from ..images.inputs import RGB, Inputs
from ..masks.reader import MaskReader
from ..path_keys import PathList
from . import photometric
from .batch import Batch, MissingMasks, Needs
from .selection import select_images
from .statistics import with_statistics
from .stream import ChunkStream
from .worker import ChunkMaker, join

logger = logging.getLogger("hapicl.data")

NAMED_FAILURES = 20  # failed images that are logged by name; all are counted


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How a loader works; what a batch holds of each image is the method's business (`Needs`).

    Attributes:
        batch_size: global batch, over all processes.
        seed: the run's seed.
        workers: worker processes; None takes `default_workers`; 0 works in this process.
        rank, world_size: this process and how many there are; each takes its stretch of every global batch.
        missing_masks: what to do about images without a mask.
        use_low_confidence: keep images whose mask is flagged low_confidence, or leave them out; methods that
            read no masks keep them.
        limit: train on the first so many paths only.
        augment: False leaves the views uint8, for measuring and looking.
        every_image: fill the last batch of an epoch up with its first images, instead of leaving it out.
        inputs: how images are read and normalised.
    """

    batch_size: int
    seed: int
    workers: int | None = None
    rank: int = 0
    world_size: int = 1
    missing_masks: MissingMasks = "error"
    use_low_confidence: bool = True
    limit: int | None = None
    augment: bool = True
    every_image: bool = False
    inputs: Inputs = RGB


class Loader:
    """Batches of augmented views, made by worker processes.

        with Loader("imagenet/", "masks.h5", needs, LoaderOptions(batch_size=256, seed=0)) as loader:
            for epoch in range(epochs):
                for batch in loader.batches(epoch):
                    ...

    Args:
        images: a folder, archives, a URL, or a file made by `hapicl data pack`; None takes the mask file's
            image root.
        masks: a mask file; not read when `needs` asks for no masks and `images` is given.
        needs: what the method needs.
        options: batch size, seed, workers and the like.
        device: where the batches go; None is the CPU.

    Attributes:
        wait_seconds: how long the last batch was waited for.
        replaced: images replaced so far because they could not be read.
        masks: the reader of the mask file; None without one.
        maker: what the workers run; `hapicl doctor` times it.
        inputs: those of the options, with mean and deviation, which are measured where nobody states them.

    Raises:
        UserError: for no images, missing masks, masks of other images, or a batch that does not fit.
    """

    def __init__(
        self,
        images: str | os.PathLike[str] | None,
        masks: str | os.PathLike[str] | MaskReader | None,
        needs: Needs,
        options: LoaderOptions,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        reader = MaskReader(masks) if isinstance(masks, str | os.PathLike) else masks
        if needs.masks and reader is None:
            raise UserError("this method needs masks: give --masks (made by `hapicl masks build`)")
        root = images if images is not None else (reader.image_root if reader is not None else None)
        if root is None:
            raise UserError("no images: give --images, or --masks whose file names the image folder")
        store = open_images(root)
        selection = select_images(
            store if images is not None else None,
            reader if needs.masks or images is None else None,
            missing=options.missing_masks,
            use_low_confidence=options.use_low_confidence or not needs.masks,
            limit=options.limit,
        )
        self.selection = selection
        self.masks = reader
        self.paths = PathList(selection.paths)
        self.options = options
        self.augment = options.augment
        self.inputs = with_statistics(options.inputs, store, self.paths)
        self.batch_size = options.batch_size
        self.steps_per_epoch = len(selection.paths) // max(1, options.batch_size)
        self._check_batch()
        if options.every_image:
            self.steps_per_epoch = math.ceil(len(selection.paths) / options.batch_size)
        self.device = torch.device(device or "cpu")
        asked = options.workers
        self.workers = default_workers(self.device, options.world_size) if asked is None else asked
        self.wait_seconds = 0.0
        self.replaced = 0
        fraction = options.batch_size // options.world_size
        self.maker = ChunkMaker(
            store,
            reader,
            selection,
            needs,
            seed=options.seed,
            batch_size=options.batch_size,
            inputs=options.inputs,
        )
        self.maker.check_masks()
        stretch = options.rank * fraction, (options.rank + 1) * fraction
        self._chunks = ChunkStream(
            self.maker, stretch, self.steps_per_epoch, workers=self.workers, pin=self.device.type == "cuda"
        )
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Give the epoch's whole batches from `first_step` on, on the device.

        Workers go on into the next epoch by themselves, so there is no gap between epochs.

        Raises:
            UserError: if a mask does not fit its image, images cannot be read at all, or workers die again
                and again.
        """
        for step in range(first_step, self.steps_per_epoch):
            started = time.perf_counter()
            batch = join(self._chunks.take(epoch, step))
            self.wait_seconds = time.perf_counter() - started
            self._log(batch.failures)
            yield self._to_device(batch)

    def close(self) -> None:
        """Stop the workers; the loader can be used again and starts new ones."""
        self._chunks.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_batch(self) -> None:
        """Refuse a batch that no epoch can fill or that the processes cannot share."""
        images, world_size = len(self.paths), self.options.world_size
        if self.batch_size < 1 or self.steps_per_epoch == 0:
            raise UserError(
                f"--batch-size {self.batch_size} does not fit {images} images; choose 1 to {images}"
            )
        if self.batch_size % world_size:
            raise UserError(
                f"--batch-size {self.batch_size} cannot be shared by {world_size} processes; take a multiple"
            )

    def _to_device(self, batch: Batch) -> Batch:
        """Copy and augment, on a stream of its own if there is one; parameter rows stay on the host."""
        if self._stream is None:
            return self._moved(batch)
        with torch.cuda.stream(self._stream):
            moved = self._moved(batch)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        moved.map_tensors(lambda tensor: _record(tensor, current))
        return moved

    def _moved(self, batch: Batch) -> Batch:
        """Copy to the device, if it is not the CPU, and augment there."""
        if self.device.type != "cpu":
            rows = batch.photometric, batch.patch_photometric
            batch = batch.to(self.device)
            batch.photometric, batch.patch_photometric = rows
        return photometric.augment(batch, self.inputs) if self.augment else batch

    def _log(self, failures: tuple[str, ...]) -> None:
        """Log images that were replaced: the first ones by name, all by number."""
        for failure in failures:
            self.replaced += 1
            if self.replaced <= NAMED_FAILURES:
                logger.warning("image replaced by the next one in the list: %s", failure)
            elif self.replaced % 1000 == 0:
                logger.warning("%d images could not be read so far and were replaced", self.replaced)


def default_workers(device: torch.device, world_size: int = 1) -> int:
    """Worker processes by the cores this process may use, shared by the processes of a machine.

    On a GPU every core but one; on the CPU, where the step itself needs the cores, a quarter of them.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    mine = usable_cores() // max(1, processes)
    return max(1, mine - 1 if device.type == "cuda" else mine // 4)


def _record(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Keep a tensor's memory until the stream that uses it is past it."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor

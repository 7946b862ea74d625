"""The loader: images and masks in, augmented batches on the device out.

Workers make chunks of uint8 views (worker.py); this process joins them, moves them to the device and
augments them there (photometric.py). What a batch holds depends on (seed, epoch, step) alone, never on
the number of workers or processes, so a resumed run draws the same crops.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Sampler

from ...common.errors import UserError
from ..images import open_images
from ..masks.reader import MaskReader
from ..path_keys import PathList
from . import photometric
from .batch import Batch, MissingMasks, Needs
from .selection import select_images
from .worker import Chunk, ChunkMaker, Task, join

logger = logging.getLogger("hapicl.data")

CHUNK = (
    32  # samples a worker makes at once: small, so that all workers serve one batch and memory stays bounded
)
PREFETCH = 2  # chunks each worker makes ahead
MAX_SHARED_BYTES = 2 << 30  # all chunks under way together
WORKER_TIMEOUT = (
    600  # seconds without a chunk before the run stops; a network disk may be slow, not that slow
)
# a worker outlives SIGTERM by so much: longer than any step, or the step in progress dies with its worker
# (torch ends workers whose trainer is gone)
GRACE_SECONDS = 600
NAMED_FAILURES = 20  # failed images that are logged by name; all are counted


class Loader:
    """Batches of augmented views, made by worker processes.

        with Loader("imagenet/", "masks.h5", needs, batch_size=256, seed=0) as loader:
            for epoch in range(epochs):
                for batch in loader.batches(epoch):
                    ...

    Args:
        images: a folder, or a file made by `hapicl data pack`; None takes the mask file's image root.
        masks: a mask file; not read when `needs` asks for no masks and `images` is given.
        needs: what the method needs.
        batch_size: global batch, over all processes.
        seed: the run's seed.
        workers: worker processes; None takes `default_workers`; 0 works in this process.
        device: where the batches go; None is the CPU.
        rank, world_size: this process and how many there are; each takes its stretch of every global batch.
        missing_masks: what to do about images without a mask.
        use_low_confidence: whether masks of low confidence count.
        limit: train on the first so many paths only.
        start_method: fork, spawn or forkserver; None takes Python's default.
        scaled_decode: decode large JPEGs reduced where every crop allows it.
        augment: False leaves the views uint8, for measuring and looking.

    Attributes:
        wait_seconds: how long the last batch was waited for.
        replaced: images replaced so far because they could not be read.
        maker: what the workers run; `hapicl doctor` times it.

    Raises:
        UserError: for no images, missing masks, masks of other images, or a batch that does not fit.
    """

    def __init__(
        self,
        images: str | os.PathLike[str] | None,
        masks: str | os.PathLike[str] | MaskReader | None,
        needs: Needs,
        *,
        batch_size: int,
        seed: int,
        workers: int | None = None,
        device: torch.device | str | None = None,
        rank: int = 0,
        world_size: int = 1,
        missing_masks: MissingMasks = "error",
        use_low_confidence: bool = True,
        limit: int | None = None,
        start_method: str | None = None,
        scaled_decode: bool = True,
        augment: bool = True,
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
            missing=missing_masks,
            use_low_confidence=use_low_confidence,
            limit=limit,
        )
        self.selection = selection
        self.paths = PathList(selection.paths)
        self.batch_size = batch_size
        self.steps_per_epoch = len(selection.paths) // max(1, batch_size)
        self._check_batch(world_size)
        self.device = torch.device(device or "cpu")
        self.workers = default_workers(self.device, world_size) if workers is None else workers
        self.wait_seconds = 0.0
        self.replaced = 0
        self.augment = augment
        fraction = batch_size // world_size
        self._stretch = (rank * fraction, (rank + 1) * fraction)
        self.maker = ChunkMaker(
            store, reader, selection, needs, seed=seed, batch_size=batch_size, scaled_decode=scaled_decode
        )
        self.maker.check_masks()
        self._order = _TaskOrder(
            self._stretch, _chunk_size(needs, fraction, self.workers), self.steps_per_epoch
        )
        self._start_method = start_method
        self._chunks: Iterator[Chunk | UserError] | None = None
        self._next: tuple[int, int] | None = None
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Give the epoch's batches from `first_step` on, drop-last, on the device.

        Workers go on into the next epoch by themselves, so there is no gap between epochs.

        Raises:
            UserError: if a mask does not fit its image, or images cannot be read at all.
        """
        for step in range(first_step, self.steps_per_epoch):
            started = time.perf_counter()
            batch = self._collect(epoch, step)
            self.wait_seconds = time.perf_counter() - started
            yield self._to_device(batch)

    def close(self) -> None:
        """Stop the workers; the loader can be used again and starts new ones."""
        chunks, self._chunks, self._next = self._chunks, None, None
        if chunks is not None and hasattr(chunks, "_shutdown_workers"):
            chunks._shutdown_workers()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_batch(self, world_size: int) -> None:
        """Refuse a batch that no epoch can fill or that the processes cannot share."""
        images = len(self.paths)
        if self.batch_size < 1 or self.steps_per_epoch == 0:
            raise UserError(
                f"--batch-size {self.batch_size} does not fit {images} images; choose 1 to {images}"
            )
        if self.batch_size % world_size:
            raise UserError(
                f"--batch-size {self.batch_size} cannot be shared by {world_size} processes; take a multiple"
            )

    def _collect(self, epoch: int, step: int) -> Batch:
        """Gather the chunks of one batch from the stream of chunks, starting it where it is asked for."""
        if self._next != (epoch, step):
            self._start(epoch, step)
        assert self._chunks is not None
        batch = join([self._take() for _ in self._order.chunks()])
        last = step + 1 == self.steps_per_epoch
        self._next = (epoch + 1, 0) if last else (epoch, step + 1)
        self._log(batch.failures)
        return batch

    def _take(self) -> Chunk:
        """Take the next chunk; a user's mistake found in a worker is raised here."""
        assert self._chunks is not None
        try:
            chunk = next(self._chunks)
        except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: it died while sending
            if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
                raise
            with contextlib.suppress(RuntimeError):  # torch may tell only now of the death that was met here
                self.close()
            reason = (str(error) or type(error).__name__).splitlines()[0]  # an EOFError says nothing
            raise UserError(
                f"a loader worker died or hangs ({reason}); it may have run out of "
                "memory: use fewer --workers, a smaller --batch-size, or more /dev/shm"
            ) from error
        if isinstance(chunk, UserError):
            self.close()
            raise chunk
        return chunk

    def _start(self, epoch: int, step: int) -> None:
        """Start the stream of chunks anew at a step."""
        self.close()
        self._order.first = (epoch, step)
        settings: dict[str, Any] = {}
        if self.workers > 0:
            settings = {
                "multiprocessing_context": self._start_method,
                "prefetch_factor": PREFETCH,
                "worker_init_fn": _prepare_worker,
                "pin_memory": self._stream is not None,
                "timeout": WORKER_TIMEOUT,
            }
            # stops OpenCV's threads before the fork: a child that inherits their locks can hang
            cv2.setNumThreads(1)
        loader = DataLoader(
            self.maker,
            batch_size=None,
            sampler=self._order,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            # of its own: starting draws a number, which would move torch's draws in a step after a resume
            generator=torch.Generator(),
            **settings,
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork of a process with threads; a worker uses none of the parent's
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            self._chunks = iter(loader)

    def _to_device(self, batch: Batch) -> Batch:
        """Copy and augment, on a stream of its own if there is one; parameter rows stay on the host."""
        if self._stream is None:
            return photometric.augment(batch) if self.augment else batch
        with torch.cuda.stream(self._stream):
            moved = batch.to(self.device)
            moved.photometric, moved.patch_photometric = batch.photometric, batch.patch_photometric
            if self.augment:
                moved = photometric.augment(moved)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        moved.map_tensors(lambda tensor: _record(tensor, current))
        return moved

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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    mine = cores // max(1, processes)
    return max(1, mine - 1 if device.type == "cuda" else mine // 4)


class _TaskOrder(Sampler[Task]):
    """All chunks from a first step on, without end; `first` is set before the workers start."""

    def __init__(self, stretch: tuple[int, int], chunk: int, steps_per_epoch: int) -> None:
        self.first = (0, 0)
        self._stretch = stretch
        self._chunk = chunk
        self._steps_per_epoch = steps_per_epoch

    def chunks(self) -> Iterator[tuple[int, int]]:
        """The chunks of one step, as positions in the global batch."""
        begin, end = self._stretch
        for start in range(begin, end, self._chunk):
            yield start, min(start + self._chunk, end)

    def __iter__(self) -> Iterator[Task]:
        epoch, step = self.first
        while True:
            for number in range(step, self._steps_per_epoch):
                for start, stop in self.chunks():
                    yield Task(epoch, number, start, stop)
            epoch, step = epoch + 1, 0


def _chunk_size(needs: Needs, fraction: int, workers: int) -> int:
    """Samples a chunk, so that all chunks under way fit in half of the free shared memory."""
    sample = sum(3 * policy.size**2 for policy in needs.views) + 1024
    if needs.jigsaw is not None:
        sample += needs.jigsaw.grid**2 * 3 * needs.jigsaw.patch**2
    budget = MAX_SHARED_BYTES
    shared = Path("/dev/shm")
    if shared.is_dir():
        budget = min(budget, shutil.disk_usage(shared).free // 2)
    fitting = budget // max(1, sample * max(1, workers) * (PREFETCH + 1))
    even = math.ceil(fraction / max(1, math.ceil(fraction / CHUNK)))
    return max(1, min(fitting, even))


def _as_it_is(chunk: Any) -> Any:
    """Chunks are made whole; there is nothing to collate."""
    return chunk


def _prepare_worker(_: int) -> None:
    """One thread a worker: more would fight over the cores. Signals are the trainer's business."""
    # a scheduler or torchrun sends them to every process of a run; the trainer needs its workers until the
    # step in progress is done, and ends them itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    if cv2.getNumThreads() != 1:  # a forked worker has it from its parent and must not touch its thread pool
        cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _record(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Keep a tensor's memory until the stream that uses it is past it."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor

"""The stream of chunks that worker processes make, started at any step and restarted where a worker dies.

What a chunk holds depends on its task alone, so a restarted stream gives the same chunks as one that ran on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Sampler

from ...common.errors import UserError
from .batch import Needs
from .worker import Chunk, ChunkMaker, Task
from .worker_process import prepare_worker

logger = logging.getLogger("hapicl.data")

CHUNK = 32  # samples a worker makes at once: small, so that all serve one batch and memory stays bounded
PREFETCH = 2  # chunks each worker makes ahead
MAX_SHARED_BYTES = 2 << 30  # all chunks under way together
LOOK_SECONDS = 5  # so often a waiting trainer looks whether its workers live
WORKER_TIMEOUT = 600  # seconds without a chunk before the run stops; no network disk is that slow
MOST_DEATHS, DEATH_STEPS = 3, 100  # so many deaths of workers within so many steps end the run
SHARED = Path("/dev/shm")  # where workers leave their chunks, on Linux
ADVICE = "use fewer --workers, a smaller --batch-size" + (", or more /dev/shm" if SHARED.is_dir() else "")
_CHILD_ENDED = getattr(signal, "SIGCHLD", None)  # Windows has none, and torch looks at its workers itself


class ChunkStream:
    """Chunks of one process's share of every batch, in order, from any step on.

    Args:
        maker: what the workers run.
        stretch: first and one-past-last sample of this process in the global batch.
        steps_per_epoch: batches in an epoch.
        workers: processes; 0 works in this one.
        pin: whether chunks come in pinned memory, for a copy to a GPU beside the computation.
    """

    def __init__(
        self,
        maker: ChunkMaker,
        stretch: tuple[int, int],
        steps_per_epoch: int,
        *,
        workers: int,
        pin: bool,
    ) -> None:
        self._maker = maker
        self._workers = workers
        self._pin = pin
        self._steps_per_epoch = steps_per_epoch
        channels = maker.inputs.in_channels
        chunk = _chunk_size(maker.needs, channels, stretch[1] - stretch[0], workers)
        self._order = _TaskOrder(stretch, chunk, steps_per_epoch)
        self._chunks: Iterator[Chunk | UserError] | None = None
        self._next: tuple[int, int] | None = None
        self._deaths: deque[int] = deque(maxlen=MOST_DEATHS)  # steps of the run, counted from its beginning

    def take(self, epoch: int, step: int) -> list[Chunk]:
        """Take the chunks of one step; the stream starts there unless it stands there already.

        A worker that dies (killed, out of memory) is replaced, with a warning; the chunks stay the same.

        Raises:
            UserError: for a user's mistake found in a worker, workers that die again and again, or one that
                hangs.
        """
        while True:
            if self._next != (epoch, step):
                self._start(epoch, step)
            self._next = None  # until all are there
            try:
                chunks = [self._one() for _ in self._order.chunks()]
            except _WorkerDied as death:
                self._replace(str(death), epoch, step)
                continue
            last = step + 1 == self._steps_per_epoch
            self._next = (epoch + 1, 0) if last else (epoch, step + 1)
            return chunks

    def close(self) -> None:
        """Stop the workers; the next `take` starts new ones."""
        chunks, self._chunks, self._next = self._chunks, None, None
        if chunks is not None and hasattr(chunks, "_shutdown_workers"):
            chunks._shutdown_workers()

    def _one(self) -> Chunk:
        """Take the next chunk; a user's mistake found in a worker is raised here."""
        assert self._chunks is not None
        waited = 0.0
        while True:
            try:
                with _deaths_told():
                    chunk = next(self._chunks)
            except (ConnectionError, EOFError) as error:  # it died while sending
                raise _WorkerDied(str(error) or type(error).__name__) from error
            except RuntimeError as error:  # torch has no class of its own for these
                if str(error).startswith("DataLoader worker (pid"):
                    raise _WorkerDied(str(error).splitlines()[0]) from error
                if not str(error).startswith("DataLoader timed out"):
                    raise
                waited += LOOK_SECONDS
                if waited >= WORKER_TIMEOUT:
                    self.close()
                    raise UserError(
                        f"the loader workers have given nothing for {WORKER_TIMEOUT} seconds; do the disks "
                        "of images and masks still answer? Continue with --resume auto"
                    ) from error
                continue
            if isinstance(chunk, UserError):
                self.close()
                raise chunk
            return chunk

    def _replace(self, reason: str, epoch: int, step: int) -> None:
        """Make ready for new workers after a death, unless there were too many.

        Raises:
            UserError: after `MOST_DEATHS` within `DEATH_STEPS` steps.
        """
        with contextlib.suppress(RuntimeError):  # torch may tell of the same death once more
            self.close()
        self._deaths.append(epoch * self._steps_per_epoch + step)
        if len(self._deaths) == MOST_DEATHS and self._deaths[-1] - self._deaths[0] <= DEATH_STEPS:
            raise UserError(
                f"{MOST_DEATHS} loader workers died within {DEATH_STEPS} steps, the last at epoch {epoch}, "
                f"batch {step} ({reason}); they may run out of memory: {ADVICE}, and continue "
                "with --resume auto"
            )
        logger.warning(
            "a loader worker died at epoch %d, batch %d (%s) and is replaced; the batches stay the same. It "
            "may have run out of memory; if that happens again, %s",
            epoch,
            step,
            reason,
            ADVICE,
        )

    def _start(self, epoch: int, step: int) -> None:
        """Start the stream of chunks anew at a step."""
        self.close()
        self._order.first = (epoch, step)
        settings: dict[str, Any] = {}
        if self._workers > 0:
            settings = {
                "prefetch_factor": PREFETCH,
                "worker_init_fn": prepare_worker,
                "pin_memory": self._pin,
                "timeout": LOOK_SECONDS,
            }
            # stops OpenCV's threads before the fork: a child that inherits their locks can hang
            cv2.setNumThreads(1)
        loader = DataLoader(
            self._maker,
            batch_size=None,
            sampler=self._order,
            collate_fn=_as_it_is,
            num_workers=self._workers,
            # of its own: starting draws a number, which would move torch's draws in a step after a resume
            generator=torch.Generator(),
            **settings,
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork of a process with threads; a worker uses none of the parent's
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            self._chunks = iter(loader)
        self._next = (epoch, step)
        _keep_deaths_out_of_steps()


class _WorkerDied(Exception):
    """A worker process is gone; the message is torch's."""


class _Gate:
    """A handler of SIGCHLD that lets torch's raise only while a chunk is waited for.

    torch raises the death of a worker right in the signal's handler, in the middle of whatever the trainer
    does then: an optimiser's update, a checkpoint. Here it learns of it when it next asks for a chunk.
    """

    def __init__(self, report: Callable[[int, FrameType | None], Any]) -> None:
        self._report = report
        self._open = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._open:
            self._report(number, frame)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Report deaths since the last time, and those that come meanwhile."""
        self._open = True
        try:
            assert _CHILD_ENDED is not None
            self._report(_CHILD_ENDED, None)
            yield
        finally:
            self._open = False


def _keep_deaths_out_of_steps() -> None:
    """Put the gate before torch's handler, which the first DataLoader of a process has set."""
    if _CHILD_ENDED is None:
        return
    handler = signal.getsignal(_CHILD_ENDED)
    ours = getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling"
    if ours and callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(_CHILD_ENDED, _Gate(handler))


def _deaths_told() -> contextlib.AbstractContextManager[None]:
    """Let torch tell of dead workers inside."""
    handler = None if _CHILD_ENDED is None else signal.getsignal(_CHILD_ENDED)
    main = threading.current_thread() is threading.main_thread()
    return handler.opened() if main and isinstance(handler, _Gate) else contextlib.nullcontext()


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


def _chunk_size(needs: Needs, channels: int, fraction: int, workers: int) -> int:
    """Samples a chunk, so that all chunks under way fit in half of the free shared memory."""
    sample = sum(channels * policy.size**2 for policy in needs.views) + 1024
    if needs.jigsaw is not None:
        sample += needs.jigsaw.grid**2 * channels * needs.jigsaw.patch**2
    budget = MAX_SHARED_BYTES
    if SHARED.is_dir():
        budget = min(budget, shutil.disk_usage(SHARED).free // 2)
    fitting = budget // max(1, sample * max(1, workers) * (PREFETCH + 1))
    even = math.ceil(fraction / max(1, math.ceil(fraction / CHUNK)))
    return max(1, min(fitting, even))


def _as_it_is(chunk: Any) -> Any:
    """Chunks are made whole; there is nothing to collate."""
    return chunk

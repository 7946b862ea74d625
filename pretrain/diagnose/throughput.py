"""The measuring half of `hapicl doctor`: seconds a sample of a worker's stages, all workers, the device.

A worker's stages are timed one image after another in this process, the workers together as a run has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from ...common.errors import UserError
from ...common.system.devices import wait_for
from ...data.images.decode import ImageError, decode_image
from ...data.images.inputs import RGB, Inputs
from ...data.loading import photometric, views
from ...data.loading.batch import Batch
from ...data.loading.loader import Loader
from ...data.loading.worker import Task
from ...data.path_keys import decode_path


@dataclass
class StageTimes:
    """Seconds spent in each stage, and over how many samples."""

    seconds: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the time of a `with` block to a stage."""
        return _Timed(self, stage)

    def per_sample(self, stage: str) -> float:
        """Seconds a sample."""
        return self.seconds.get(stage, 0.0) / max(1, self.samples)


class _Timed:
    """Times one block."""

    def __init__(self, times: StageTimes, stage: str) -> None:
        self._times, self._stage, self._started = times, stage, 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._started
        self._times.seconds[self._stage] = self._times.seconds.get(self._stage, 0.0) + spent


def measure_stages(loader: Loader, *, samples: int = 96) -> StageTimes:
    """Time the stages of a worker in this process, one image after another.

    Stages: `read` (the file's bytes), `decode` (in full), `decode as needed` (reduced where the crops allow),
    `mask` (read, unpack, redraw, occupancy), `crop` (cut and resize all views), and `worker` (all a worker
    does). Images that cannot be read are skipped, as a run would replace them.

    Raises:
        UserError: if a mask does not fit its image, or no image can be read.
    """
    times, warm = StageTimes(), False
    for index in loader.maker.order(0)[:samples].tolist():
        try:
            if not warm:  # the first time pays for loading compiled code
                _stages(loader, index, StageTimes())
                warm = True
            _stages(loader, index, times)
        except ImageError:
            continue
        times.samples += 1
    if times.samples == 0:
        raise UserError("none of the images can be read; `hapicl masks build` lists the reasons")
    count = min(times.samples, loader.batch_size)
    started = time.perf_counter()
    made = loader.maker[Task(0, 0, 0, count)]
    if isinstance(made, UserError):
        raise made
    times.seconds["worker"] = (time.perf_counter() - started) * times.samples / count
    return times


def _stages(loader: Loader, index: int, times: StageTimes) -> None:
    """Time the stages of one image."""
    maker, needs, reader = loader.maker, loader.maker.needs, loader.maker.inputs.reader
    path = decode_path(bytes(maker.selection.paths[index]))
    with times.timed("read"):
        data, size, header = maker.store.read(path)
    with times.timed("mask"):
        mask = maker.mask(path, index, size)
        draws = views.draw_views(needs, views.Counter(maker.seed, 0, index), size, mask)
        if mask is not None and needs.grid is not None:
            for draw in draws:
                mask.crop(draw.geometry, needs.grid)
    with times.timed("decode"):
        decode_image(data, path, header=header, reader=reader)
    side = views.shortest_side(needs, draws, None, size)
    with times.timed("decode as needed"):
        image = decode_image(data, path, reduce_to=side, header=header, reader=reader)
    with times.timed("crop"):
        for policy, draw in zip(needs.views, draws, strict=True):
            views.cut_view(image, size, draw.geometry, policy.size, crop_filter=policy.crop_filter)


def measure_loader(loader: Loader, *, seconds: float = 4.0) -> tuple[float, Batch]:
    """Seconds a sample with all workers, and the last batch, as it came."""
    epoch, samples, started, batch = 0, 0, 0.0, None
    while batch is None or samples == 0 or time.perf_counter() - started < seconds:
        for batch in loader.batches(epoch):
            if started == 0.0:  # the first batch pays for starting the workers
                started = time.perf_counter()
                continue
            samples += len(batch)
            if time.perf_counter() - started >= seconds:
                break
        epoch += 1
    return (time.perf_counter() - started) / samples, batch


def measure_device(
    batch: Batch, device: torch.device, *, inputs: Inputs = RGB, repeats: int = 5
) -> tuple[float, float, Batch]:
    """Seconds a sample of the copy to the device and of the augmentation there, and the augmented batch.

    Args:
        batch: uint8 views, on any device.
        device: where the run would train; on the CPU there is no copy and its time is 0.
        inputs: how the views are normalised.
        repeats: the fastest of so many counts; the first pays for start-up.
    """
    pixels = [*batch.views] if batch.patches is None else [*batch.views, batch.patches]
    host = [view.cpu().pin_memory() if device.type == "cuda" else view for view in pixels]
    copies, turns = [], []
    done = batch
    for _ in range(repeats):
        copies.append(_seconds(lambda: [view.to(device, non_blocking=True) for view in host], device))
        started = time.perf_counter()
        done = photometric.augment(batch, inputs)
        wait_for(device)
        turns.append(time.perf_counter() - started)
    transfer = min(copies) / len(batch) if device.type == "cuda" else 0.0
    return transfer, min(turns) / len(batch), done


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time some work on the device until it is done."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started

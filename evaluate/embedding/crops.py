"""Images of a store as centre crops, in order; one that cannot be read is a reason, not an end.

Shape legend: B images, C channels, S side of the crop in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...data.images.decode import ImageError
from ...data.images.inputs import RGB, Inputs
from ...data.images.store import ImageStore, read_pixels
from ...data.loading.worker_process import prepare_worker, start_workers
from ...models.preprocess import as_tensor, centre_crop, default_resize


@dataclass(frozen=True)
class CropBatch:
    """Crops of some rows, and why others of them have none."""

    rows: list[int]
    crops: Tensor  # (B, C, S, S) uint8, one for each of `rows`
    unreadable: dict[int, str]  # row -> reason


class _Crops(Dataset[tuple[int, Tensor | str]]):
    """A crop by row, or the reason why there is none."""

    def __init__(self, store: ImageStore, paths: Sequence[str], image_size: int, inputs: Inputs) -> None:
        self.store, self.paths, self.image_size, self.inputs = store, paths, image_size, inputs

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            return row, read_crop(self.store, self.paths[row], self.image_size, self.inputs)
        except ImageError as error:
            return row, error.reason


def read_crop(store: ImageStore, path: str, image_size: int, inputs: Inputs = RGB) -> Tensor:
    """One image's centre crop, as evaluations take it: (C, S, S) uint8.

    Raises:
        ImageError: if it cannot be read.
    """
    image = read_pixels(store, path, reduce_to=default_resize(image_size), reader=inputs.reader)
    return centre_crop(as_tensor(image), crop=image_size)


def crop_batches(
    store: ImageStore,
    paths: Sequence[str],
    batches: Sequence[list[int]],
    *,
    image_size: int,
    inputs: Inputs = RGB,
    workers: int = 0,
) -> Iterator[CropBatch]:
    """Read batches of rows, in their order whatever the number of processes.

    Args:
        store, paths: the images; a row is a place in `paths`.
        batches: rows that are read together.
        image_size: S.
        inputs: what is read of a file.
        workers: processes that read; 0 reads here.
    """
    loader = DataLoader(
        _Crops(store, paths, image_size, inputs),
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=prepare_worker,
        collate_fn=_collate,
        generator=torch.Generator(),  # of its own: torch's stays where it is
    )
    yield from start_workers(loader)


def _collate(samples: list[tuple[int, Tensor | str]]) -> CropBatch:
    """Crops in one tensor, reasons beside them."""
    read = {row: value for row, value in samples if isinstance(value, Tensor)}
    crops = torch.stack(list(read.values())) if read else torch.zeros(0, 3, 0, 0, dtype=torch.uint8)
    return CropBatch(list(read), crops, {row: value for row, value in samples if isinstance(value, str)})

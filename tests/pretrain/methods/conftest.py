from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from joint import TinyBackbone

from hapicl.data.geometry import ViewGeometry
from hapicl.data.loading.batch import Batch
from hapicl.pretrain.methods.base import Context, Method
from hapicl.pretrain.methods.registry import method_class


def random_batch(size: int = 8, side: int = 64, grid: int = 4, seed: int = 0, patch: int = 37) -> Batch:
    """A batch as a method gets it, with everything any method asks for."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    def geometry() -> ViewGeometry:
        extent = torch.randint(40, 60, (2, size), generator=draw)
        corner = torch.randint(0, 40, (2, size), generator=draw)
        return ViewGeometry(*corner, *extent, uniform(size) < 0.5, torch.zeros(size, dtype=torch.bool))

    return Batch(
        index=torch.randperm(2 * size, generator=draw)[:size],
        image_size=torch.full((size, 2), 100),
        views=tuple(torch.randn(size, 3, side, side, generator=draw) for _ in range(2)),
        geometry=(geometry(), geometry()),
        photometric=(),
        occupancy=tuple(uniform(size, grid, grid) for _ in range(2)),
        has_mask=torch.ones(size, dtype=torch.bool),
        fallback=torch.zeros(size, 2, dtype=torch.bool),
        patches=torch.randn(size, 9, 3, patch, patch, generator=draw),
        permutation=torch.stack([torch.randperm(9, generator=draw) for _ in range(size)]),
        rotation=torch.randint(4, (size,), generator=draw),
    )


def build_method(
    name: str, *, batch_size: int = 8, total_steps: int = 100, data_set_size: int | None = None, **config: Any
) -> Method:
    """A method on a tiny convolutional backbone (4 x 4 cells at 64 px), initialised from seed 0."""
    torch.manual_seed(0)
    kind = method_class(name)
    context = Context(
        data_set_size=data_set_size or 2 * batch_size,
        batch_size=batch_size,
        total_steps=total_steps,
        steps_per_epoch=2,
    )
    return kind(kind.Config(**config), context, TinyBackbone())


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    return random_batch


@pytest.fixture
def make_method() -> Callable[..., Method]:
    return build_method

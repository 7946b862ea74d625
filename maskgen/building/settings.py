"""How a build runs: the settings that decide how fast it is and which part of the work it does."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ...common.config import Settings


class BuildSettings(Settings):
    """Where and how much a build works. The masks themselves depend on none of it.

    Attributes:
        workers: processes; None for as many as there are cores for this process.
        limit: only the first so many images in order of their paths; None for all.
        backend: "loky" (processes here), "dask" or "ray" (a cluster).
        scheduler: address of a running dask or ray cluster; None starts one here.
        shard: (i, n), i from 1: make only every n-th part file; `hapicl masks merge` joins them.
        update: bring an existing file up to date with a changed folder; masks of unchanged images are kept.
    """

    workers: Annotated[int, Field(ge=1)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    backend: Literal["loky", "dask", "ray"] = "loky"
    scheduler: str | None = None
    shard: tuple[int, int] | None = None
    update: bool = False

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """Refuse a shard that is none of n, and a scheduler that nobody asks."""
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"shard {self.shard[0]}/{self.shard[1]}: give i/n with i from 1 to n")
        if self.scheduler is not None and self.backend == "loky":
            raise ValueError(
                "scheduler has no meaning for the backend loky; add --backend dask or --backend ray"
            )
        return self

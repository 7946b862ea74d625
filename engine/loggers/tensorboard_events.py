"""TensorBoard: event files in the run folder, `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping

from .dashboards import RunFacts
from .run_files import EVENTS


class TensorBoardEvents:
    """Scalars of one run; those past a resumed step are purged, since they are written again."""

    def __init__(self, facts: RunFacts) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(facts.folder / EVENTS), purge_step=facts.resumed_step or None)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Close the file; it says nothing of how a run ended."""
        self._writer.close()

"""A non-finite loss changes no parameter, and the host learns of it without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..common.errors import UserError
from .distributed import world_size


class NonFiniteLossError(UserError):
    """The loss was not a finite number; names the step and the loss terms."""


class FiniteGuard:
    """Watches the loss on the device.

    `found_inf` turns 1 at the first bad loss and stays: masked optimisers then update nothing, so the
    parameters are those before the bad step however late the host looks. The bad step's number and values
    are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._values: dict[tuple[str, ...], Tensor] = {}

    @torch.no_grad()
    def check(self, step: int, names: Sequence[str], values: Tensor) -> None:
        """Note one step, before its update.

        Args:
            step: its number.
            names: of the values; the first is the loss, which alone decides.
            values: (n,) float32 on the device.
        """
        bad = (~torch.isfinite(values[0])).float()
        if world_size() > 1:  # one process's bad loss spoils everyone's averaged gradient
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        first = (bad > 0) & (self.found_inf == 0)
        key = tuple(names)
        if key not in self._values:
            self._values[key] = torch.zeros_like(values)
        self._values[key].copy_(torch.where(first, values, self._values[key]))
        self._step.copy_(torch.where(first, step, self._step))
        self.found_inf.copy_(torch.maximum(self.found_inf, bad))

    def raise_if_failed(self) -> None:
        """Wait for the device and stop the run if a loss was not finite.

        Raises:
            NonFiniteLossError: with the step, the terms that were not finite, and the others' values.
        """
        if self.found_inf.item() == 0:
            return
        found = {
            name: value
            for names, values in self._values.items()
            for name, value in zip(names, values.tolist(), strict=True)
        }
        bad = [name for name, value in found.items() if not _finite(value)]
        named = ", ".join(f"{name} = {found[name]}" for name in bad) or "the loss of another process"
        others = ", ".join(f"{name} = {value:.4g}" for name, value in found.items() if name not in bad)
        raise NonFiniteLossError(
            f"training stopped at step {int(self._step.item())}, before its update: {named}"
            + (f" (finite: {others})" if others else "")
            + ". No parameter was changed by that step. Lower the learning rate (optimizer.base_lr), "
            "clip gradients (--set optimizer.clip_norm=1.0) or train in float32 (--set precision=fp32), and "
            "continue from the last checkpoint with --resume auto"
        )


def _finite(value: float) -> bool:
    return value - value == 0

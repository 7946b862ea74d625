"""What a bad step must not spoil.

A non-finite loss changes no parameter, and the host learns of it without waiting for the device. A step that
an error ends before its update can be undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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


class WholeStep:
    """Brings a module back to its last whole step, unless an error came in the midst of an update.

    Forward passes change buffers: BatchNorm's running statistics, queues. Those are copied at the beginning
    of every step; which they are is learnt from the forward passes themselves, by the count that torch keeps
    of the changes of a tensor (it counts none of BatchNorm's). A memory bank, which only the end of a step
    writes, is never copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tensors = _tensors(module)
        self._versions: dict[str, int] = {}
        self._copies: dict[str, Tensor] = {}
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []  # copies and their originals, by type
        self._state: Literal["whole", "begun", "updating"] = "whole"
        norms = {name for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
        self._found = {name for name, _ in module.named_buffers() if name.rpartition(".")[0] in norms}

    @torch.no_grad()
    def begin(self) -> None:
        """A step begins: copy what its forward passes will change; the device is not waited for."""
        if self._found:
            self._copies |= {name: torch.empty_like(self._tensors[name]) for name in self._found}
            self._found = set()
            self._group()
        for copies, originals in self._groups:
            torch._foreach_copy_(copies, originals)
        self._versions = {name: value._version for name, value in self._tensors.items()}
        self._state = "begun"

    def begin_update(self) -> None:
        """The forward passes are done, the update begins: note what they have changed, for the next step."""
        self._found.update(name for name in self._changed() if name not in self._copies)
        self._state = "updating"

    def end(self) -> None:
        """The step is whole."""
        self._state = "whole"

    @torch.no_grad()
    def restore(self) -> bool:
        """Undo a step that has not reached its update; False where that cannot be done."""
        if self._state != "begun":
            return self._state == "whole"
        now = _tensors(self._module)
        same = now.keys() == self._tensors.keys() and all(now[name] is self._tensors[name] for name in now)
        if not same or any(name not in self._copies for name in self._changed()):
            return False
        for copies, originals in self._groups:
            torch._foreach_copy_(originals, copies)
        self._state = "whole"
        return True

    def _changed(self) -> list[str]:
        return [name for name, value in self._tensors.items() if value._version != self._versions[name]]

    def _group(self) -> None:
        """Sort by type: tensors of one type are copied in one call."""
        kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for name, copy in self._copies.items():
            copies, originals = kinds.setdefault(copy.dtype, ([], []))
            copies.append(copy)
            originals.append(self._tensors[name])
        self._groups = list(kinds.values())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())

"""What devices of torch can do: the CPU, CUDA, and Apple's GPU (mps; its steps were rehearsed, not run)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for `hapicl --help`
    import torch


WITHOUT_FLOAT64 = {"mps"}


def widest_float(device: torch.device) -> torch.dtype:
    """Float64, or float32 on a device that has no wider one."""
    import torch

    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    import torch

    torch.get_device_module(device).synchronize()


def peak_bytes(device: torch.device) -> int:
    """Largest memory held so far, bytes: on the GPU, or by this process on the CPU.

    Apple's GPU keeps no count of its peak; there it is what its driver holds for this process now, which is
    given back only where it runs short.
    """
    import torch

    from .processes import peak_memory

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return peak_memory()


def device_name(device: torch.device) -> str:
    """Name a device for people: a GPU by its model."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_name() -> str | None:
    """The machine's GPU by its model; None where torch sees none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "Apple's (mps)" if torch.backends.mps.is_available() else None

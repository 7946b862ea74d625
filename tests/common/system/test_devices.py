"""Devices of torch that are not there, played by what torch says of them."""

import pytest
import torch

from hapicl.common.system import devices
from hapicl.common.system.processes import peak_memory

MPS = torch.device("mps")


def test_apples_gpu_has_no_float64():
    assert devices.widest_float(MPS) == torch.float32
    assert {devices.widest_float(torch.device(name)) for name in ("cpu", "cuda")} == {torch.float64}


def test_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    assert [devices.peak_bytes(device) for device in (MPS, torch.device("cuda"))] == [5, 7]
    assert devices.peak_bytes(torch.device("cpu")) >= 0.9 * peak_memory() > 0


@pytest.mark.parametrize(
    ("cuda", "mps", "name"), [(True, False, "H200"), (False, True, "Apple's (mps)"), (False, False, None)]
)
def test_the_gpu_is_named(monkeypatch, cuda, mps, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.gpu_name() == name


def test_waiting_for_a_device_waits_for_that_one(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    monkeypatch.setattr(torch.cpu, "synchronize", lambda: waited.append("cpu"))
    for device in (MPS, torch.device("cpu")):
        devices.wait_for(device)
    assert waited == ["mps", "cpu"]

"""A rehearsal for the GPU: every method's step on pretended tensors, under autocast and without float64.

Forward, loss, health and EMA; autograd's engine asks for a real device, so the backward pass waits for one.
"""

import joint
import pytest
import torch
from fake_gpu import (
    CopiedToHost,
    WiderThanFloat32,
    fake_cuda,
    fake_gpu_without_float64,
    pretend,
    pretend_module,
)
from torch._subclasses.fake_tensor import DataDependentOutputException

from hapicl.engine.health import collapse_metrics

CASES = (
    {name: (name, config) for name, config in joint.CONFIGS.items()}
    | joint.VARIANTS
    | {
        "siameseim of pixels, biased": ("siameseim", {"target": "pixel", "foreground_bias": 1.0}),
        "mae, blocks, biased": (
            "mae",
            {"mask_pattern": "block", "foreground_bias": -1.0, **joint.CONFIGS["mae"]},
        ),
    }
)


@pytest.mark.parametrize("case", CASES)
def test_a_step_stays_on_its_device_and_the_host_never_waits(case):
    name, config = CASES[case]
    method, needs = joint.build(name, **config)
    batch = joint.made_up_batch(needs).map_tensors(to_float32)
    method.float()
    with fake_cuda():
        pretend_module(method)
        with torch.autocast("cuda", torch.bfloat16):
            output = method(batch.map_tensors(pretend))
        method.after_step(0, 10)
        spread = {} if output.embeddings is None else collapse_metrics(output.embeddings)
        logged = [output.loss, *output.loss_terms.values(), *output.metrics.values(), *spread.values()]
        assert {value.device.type for value in logged} == {"cuda"}
        assert {value.numel() for value in logged} == {1}
        assert output.loss.dtype == torch.float32


@pytest.mark.parametrize("case", CASES)
def test_a_step_needs_no_float64_where_the_gpu_has_none(case):
    """Positions, matches and BEiT's blocks were computed in float64, which ends a step on Apple's GPU."""
    name, config = CASES[case]
    method, needs = joint.build(name, **config)
    batch = joint.made_up_batch(needs).map_tensors(to_float32)
    method.float()
    with fake_gpu_without_float64():
        pretend_module(method)
        output = method(batch.map_tensors(pretend))
        method.after_step(0, 10)
        assert (output.loss.device.type, output.loss.dtype) == ("cuda", torch.float32)


def to_float32(value):
    return value.float() if value.is_floating_point() else value


def test_the_pretended_gpu_computes_in_bfloat16():
    with fake_cuda(), torch.autocast("cuda", torch.bfloat16):
        rows, weight = torch.ones(2, 3, device="cuda"), torch.ones(4, 3, device="cuda")
        assert torch.nn.functional.linear(rows, weight).dtype == torch.bfloat16


def test_what_would_wait_for_the_device_is_an_error_here():
    with fake_cuda():
        loss = torch.ones(3, device="cuda").sum()
        with pytest.raises(DataDependentOutputException):
            loss.item()
        with pytest.raises(DataDependentOutputException):
            bool(loss > 0)
        with pytest.raises(CopiedToHost):
            torch.ones(3, device="cuda").cpu()
        with pytest.raises(Exception, match="device"):
            torch.ones(3, device="cuda") + torch.ones(3)


def test_float64_is_an_error_on_a_pretended_gpu_without_it():
    with fake_gpu_without_float64():
        with pytest.raises(WiderThanFloat32):
            torch.ones(3, device="cuda").double()
        assert torch.ones(3, dtype=torch.float64).double().dtype == torch.float64

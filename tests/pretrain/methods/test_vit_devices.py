"""Steps of the ViT methods: on pretended CUDA tensors nothing mixes devices or waits; under bfloat16.

torch's fake tensors carry shape, type and device but no values, so that reading one on the host is an error.
"""

import pytest
import torch
from small_vit import batch_for, small_method
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode


def pretend(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="cuda")


def pretend_module(module: torch.nn.Module) -> None:
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(pretend(value), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = pretend(value)


CASES = [
    ("siameseim", {"global_weight": 1.0}),
    ("siameseim", {"form": "v1", "global_weight": 1.0, "dense_weight": 4.0}),
    ("siameseim", {"target": "pixel", "foreground_bias": 1.0}),
    ("mae", {}),
    ("mae", {"mask_pattern": "block", "foreground_bias": -1.0}),
    ("moco_v3", {}),
    ("hapicl_vit", {}),
]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_a_step_stays_on_its_device_and_waits_for_nothing(name, config) -> None:
    method = small_method(name, **config)
    batch = batch_for(method)
    with FakeTensorMode():
        pretend_module(method)
        output = method(batch.map_tensors(pretend))
        logged = [output.loss, *output.loss_terms.values(), *output.metrics.values()]
        assert {value.device.type for value in logged} == {"cuda"}
        with pytest.raises(DataDependentOutputException):  # what a wait would have raised
            output.loss.item()


@pytest.mark.parametrize(("name", "config"), CASES)
def test_bfloat16_autocast_gives_a_float32_loss_near_the_full_one(name, config) -> None:
    method = small_method(name, **config)
    batch = batch_for(method)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    full = method(batch).loss
    method.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        output = method(batch)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(full.item(), rel=0.05)
    output.loss.backward()
    gradients = [value.grad for value in method.parameters() if value.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)

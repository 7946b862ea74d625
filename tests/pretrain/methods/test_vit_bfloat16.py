"""The ViT methods' loss under bfloat16 autocast is float32 and near the full one, with finite gradients."""

import pytest
import torch
from small_vit import batch_for, small_method

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

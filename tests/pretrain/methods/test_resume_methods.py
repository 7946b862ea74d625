"""Every method resumes exactly: 10 steps equal 4 and 6, every tensor equal, queues and banks included."""

import joint
import pytest
import torch


@pytest.mark.parametrize("name", sorted(joint.CONFIGS))
def test_ten_steps_equal_four_and_six(tmp_path, name):
    whole = joint.train(name, tmp_path / "whole", steps=10)
    joint.train(name, tmp_path / "parts", steps=10, stop_after=4)
    loss_terms = joint.train(name, tmp_path / "parts", steps=10)
    assert whole["step"] == loss_terms["step"] == 10
    left, right = list(joint.tensors(whole)), list(joint.tensors(loss_terms))
    assert [place for place, _ in left] == [place for place, _ in right]
    pairs = zip(left, right, strict=True)
    assert [place for (place, one), (_, other) in pairs if not torch.equal(one, other)] == []
    start = joint.build(name, **joint.CONFIGS[name])[0].state_dict()
    moved = [
        key
        for key, value in start.items()
        if torch.is_tensor(value) and not value.equal(whole["module"][key])
    ]
    assert any(key.startswith("backbone.") for key in moved)

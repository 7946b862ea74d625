"""What each method optimises goes down when it sees one batch again and again."""

import joint
import pytest
import torch

CASES = {
    "hapicl": {"pixel_hidden": 32, "pixel_dim": 16},
    "hapicl_s": {"pixel_hidden": 32, "pixel_dim": 16},
    "hapicl_m": {"pixel_hidden": 32, "pixel_dim": 16, "queue_length": 32},
    "simclr": {},
    "byol": {"hidden": 32, "dim": 16},
    "harl": {"hidden": 32, "dim": 16},
    "pirl": {},
    "npid": {"loss": "infonce"},
    "jigsaw": {"permutations": 10, "hidden": 16},
    "rotation": {},
}
FALLING = {"hapicl_m": "pixel"}  # its instance loss has a queue that fills with this very batch


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_loss_of_one_batch_falls(name):
    method, needs = joint.build(name, **CASES[name])
    batch = joint.made_up_batch(needs)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    values = []
    for step in range(30):
        output = method(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_step(step, 1000)
        part = FALLING.get(name)
        values.append((output.loss_terms[part] if part else output.loss.detach()).item())
    assert sum(values[-5:]) / 5 < 0.9 * values[0]

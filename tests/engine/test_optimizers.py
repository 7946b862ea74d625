"""The optimisers agree with known ones; schedules have known values; a masked update changes nothing."""

import pytest
import torch
from timm.optim import Lars as TimmLars
from torch import nn

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.engine.optimizers import OptimizerSettings, build_optimizer, mask_updates, set_lr
from hapicl.engine.schedule import ScheduleSettings, lr_factor

CPU = torch.device("cpu")


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.BatchNorm1d(7), nn.Linear(7, 2)).double()


def train(module, optimizer, steps=5):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, 5, generator=generator, dtype=torch.float64)).square().sum().backward()
        optimizer.step()


def test_lars_agrees_with_timm_given_the_right_two_groups():
    ours, theirs = network(), network()
    settings = OptimizerSettings(name="lars", base_lr=0.3, weight_decay=1e-2)
    train(ours, build_optimizer(ours, settings, batch_size=256, device=CPU))
    groups = [
        {"params": [value for value in theirs.parameters() if value.ndim > 1], "weight_decay": 1e-2},
        # no weight decay means no adaptation in timm
        {"params": [value for value in theirs.parameters() if value.ndim == 1], "weight_decay": 0.0},
    ]
    train(theirs, TimmLars(groups, lr=0.3, momentum=0.9, trust_coeff=1e-3))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_lars_adapts_matrices_and_leaves_vectors_as_in_sgd():
    settings = OptimizerSettings(name="lars", base_lr=1.0, weight_decay=0.0, momentum=0.0)
    module = nn.Linear(4, 4)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    optimizer = build_optimizer(module, settings, batch_size=256, device=CPU)
    module.weight.grad, module.bias.grad = torch.full((4, 4), 7.0), torch.full((4,), 7.0)
    optimizer.step()
    expected = 1e-3 * weight.norm() / 28.0 * 7.0
    torch.testing.assert_close(module.weight, weight - expected)
    torch.testing.assert_close(module.bias, bias - 7.0)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_weight_decay_falls_on_what_it_should(name):
    module = network()
    groups = build_optimizer(
        module, OptimizerSettings(name=name, weight_decay=0.1), batch_size=256, device=CPU
    )
    decay_of_vectors = {
        group["weight_decay"] for group in groups.param_groups for value in group["params"] if value.ndim == 1
    }
    assert decay_of_vectors == ({0.1} if name == "sgd" else {0.0})
    matrices = [group for group in groups.param_groups if group["params"][0].ndim > 1]
    assert [group.get("adapted_decay", group["weight_decay"]) for group in matrices] == [0.1]


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("clean_steps", [0, 2])
def test_a_masked_update_changes_no_parameter_and_no_state(name, clean_steps):
    module = network()
    optimizer = build_optimizer(module, OptimizerSettings(name=name), batch_size=256, device=CPU)
    found_inf = torch.zeros(())
    assert mask_updates(optimizer, found_inf)
    train(module, optimizer, clean_steps)
    before = [value.detach().clone() for value in module.parameters()]
    found_inf.fill_(1.0)
    optimizer.zero_grad()
    (module(torch.randn(8, 5, dtype=torch.float64)).sum() * float("nan")).backward()
    optimizer.step()
    for value, kept in zip(module.parameters(), before, strict=True):
        assert torch.equal(value, kept)


def test_a_foreach_optimiser_says_that_it_cannot_be_masked():
    settings = OptimizerSettings(fused=False)
    optimizer = build_optimizer(network(), settings, batch_size=256, device=CPU)
    assert not mask_updates(optimizer, torch.zeros(()))


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_fused_and_foreach_train_alike(name):
    one, other = network(), network()
    for module, fused in ((one, True), (other, False)):
        settings = OptimizerSettings(name=name, fused=fused)
        train(module, build_optimizer(module, settings, batch_size=256, device=CPU))
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_the_rate_grows_with_the_global_batch_and_scales_by_group():
    module = network()
    groups = [{"params": module[0].parameters(), "lr_scale": 0.1}, {"params": module[3].parameters()}]
    optimizer = build_optimizer(groups, OptimizerSettings(base_lr=0.03), batch_size=1024, device=CPU)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.012, 0.012, 0.12, 0.12])
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.006, 0.006, 0.06, 0.06])


def test_cosine_after_a_linear_warm_up():
    settings = ScheduleSettings(warmup_epochs=2)
    factors = [lr_factor(settings, step, 100, 5) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] < 1e-3


def test_steps_drop_at_their_shares_of_the_run():
    settings = ScheduleSettings(name="steps", milestones=(0.5, 0.75))
    assert [lr_factor(settings, step, 100, 5) for step in (0, 49, 50, 74, 75, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "adam"},
        {"base_lr": 0.0},
        {"clip_norm": -1.0},
        {"momentum": 1.0},
        {"betas": [0.9, 1.0]},
        {"trust": -1.0},
        {"eps": -1e-8},
        {"weight_decay": -1.0},
    ],
    ids=str,
)
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(UserError, match=rf"setting optimizer\.{next(iter(wrong))}.*: (should|choose)"):
        build(OptimizerSettings, wrong, where="optimizer.")


@pytest.mark.parametrize(
    "wrong", [{"name": "linear"}, {"gamma": -0.1}, {"power": -1}, {"milestones": [0.5, 1]}], ids=str
)
def test_a_wrong_schedule_is_refused(wrong):
    with pytest.raises(UserError, match=rf"setting schedule\.{next(iter(wrong))}.*: (should|choose)"):
        build(ScheduleSettings, wrong, where="schedule.")

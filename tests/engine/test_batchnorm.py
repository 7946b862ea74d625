"""Split BatchNorm is BatchNorm by group; conversions keep weights, names and modes."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn

from hapicl.common.errors import UserError
from hapicl.engine import batchnorm
from hapicl.engine.batchnorm import SplitBatchNorm, split_batch_norm


@given(groups=st.sampled_from([1, 2, 4]), each=st.integers(2, 4), tail=st.sampled_from([(), (3,), (2, 5)]))
def test_each_group_is_normalised_by_itself(groups, each, tail):
    torch.manual_seed(0)
    plain = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(tail)](4).double()
    split = SplitBatchNorm(4, groups).double()
    with torch.no_grad():
        for norm in (plain, split):
            norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
            norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    values = torch.randn(groups * each, 4, *tail, dtype=torch.float64)
    parts = []
    means = []
    for part in values.chunk(groups):
        plain.reset_running_stats()
        parts.append(plain(part))
        means.append(plain.running_mean.clone())
    torch.testing.assert_close(split(values), torch.cat(parts))
    torch.testing.assert_close(split.running_mean, torch.stack(means).mean(0))


def test_in_evaluation_mode_the_running_statistics_serve():
    norm, plain = SplitBatchNorm(3, 2).eval(), nn.BatchNorm2d(3).eval()
    values = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(norm(values), plain(values))


def test_splitting_keeps_weights_names_and_modes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4))).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    split = split_batch_norm(network, 2)
    assert isinstance(split[1], SplitBatchNorm)
    assert isinstance(split[2][0], SplitBatchNorm)
    assert not split[1].training
    after = split.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert split_batch_norm(nn.BatchNorm1d(3), 1).__class__ is nn.BatchNorm1d


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(UserError, match="a batch of 5 does not split into 2"):
        SplitBatchNorm(3, 2)(torch.randn(5, 3))


def test_groups_must_divide_over_the_processes(monkeypatch):
    monkeypatch.setattr(batchnorm, "world_size", lambda: 4)
    with pytest.raises(UserError, match="6 BatchNorm groups do not divide over 4 processes"):
        split_batch_norm(nn.BatchNorm1d(3), 6)
    assert split_batch_norm(nn.BatchNorm1d(3), 8).groups == 2


def test_split_batch_norm_keeps_channels_last():
    """Else every layer around it converts back and forth, at 1.5 times the step's time on a CPU."""
    norm = split_batch_norm(torch.nn.BatchNorm2d(8), 2)
    images = torch.randn(4, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    assert norm(images).is_contiguous(memory_format=torch.channels_last)


def test_split_statistics_of_bf16_maps_have_the_weights_precision():
    norm = split_batch_norm(torch.nn.BatchNorm2d(3, momentum=1.0), 2)
    images = torch.randn(8, 3, 16, 16).bfloat16()
    norm(images)
    means = images.float().unflatten(0, (2, 4)).mean((1, 3, 4)).mean(0)
    torch.testing.assert_close(norm.running_mean, means, atol=1e-6, rtol=1e-5)


def test_a_batchnorm_with_an_activation_of_its_own_lost_it_when_split():
    norm = BatchNormAct2d(3, act_layer=nn.ReLU)
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.5, -0.5, 0.0]))
    network = nn.Sequential(norm)
    values = torch.randn(4, 3, 5, 5)
    expected = network.eval()(values)
    names = set(network.state_dict())
    split = copy.deepcopy(split_batch_norm(network, 2)).eval()
    assert isinstance(split[0], SplitBatchNorm)
    assert set(split.state_dict()) == names
    torch.testing.assert_close(split(values), expected)
    assert split.train()(values).min() == 0  # also when it trains

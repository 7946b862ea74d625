from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from hapicl.common.errors import UserError
from hapicl.data.loading.batch import Batch
from hapicl.pretrain.modules.momentum import (
    batch_norm_groups,
    cosine_momentum,
    encode_shuffled,
    make_momentum_encoder,
    update_momentum,
)


def test_a_copy_takes_no_gradient_and_follows_parameter_by_parameter():
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    copy = make_momentum_encoder(online)
    before = [value.clone() for value in copy.parameters()]
    with torch.no_grad():
        for value in online.parameters():
            value.add_(1)
        online[1].running_mean.add_(5)
    update_momentum([copy], [online], 0.9)
    for old, new, trained in zip(before, copy.parameters(), online.parameters(), strict=True):
        assert not new.requires_grad
        torch.testing.assert_close(new, 0.9 * old + 0.1 * trained)
    assert not copy[1].running_mean.any()  # statistics are the copy's own


def test_momentum_rises_to_one_by_a_cosine():
    assert cosine_momentum(0.99, 0, 100) == pytest.approx(0.99)
    assert cosine_momentum(0.99, 50, 100) == pytest.approx(0.995)
    assert cosine_momentum(0.99, 100, 100) == 1
    step = cosine_momentum(0.996, 25, 100)
    assert step == pytest.approx(1 - 0.004 * (math.cos(math.pi / 4) + 1) / 2)


@pytest.mark.parametrize(
    ("batch", "groups"), [(256, 8), (64, 2), (32, 2), (16, 2), (8, 1), (96, 3), (50, 2), (1024, 32)]
)
def test_groups_are_of_32_as_published_and_at_least_two(batch, groups):
    assert batch_norm_groups(None, batch) == groups


def test_a_batch_that_does_not_split_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert batch_norm_groups(None, 33) == 1
    assert "does not split into BatchNorm groups" in caplog.text
    with pytest.raises(UserError, match="batch_norm_groups 3 does not divide the batch of 16"):
        batch_norm_groups(3, 16)


@pytest.mark.parametrize("deal", [True, False])
def test_dealt_keys_come_back_to_their_owners(deal):
    images = torch.arange(12.0).view(12, 1)
    batch = Batch(
        index=torch.arange(12), image_size=torch.ones(12, 2), views=(images,), geometry=(), photometric=()
    )
    seen = []

    def encode(values):
        seen.append(values)
        return values * 2, values + 1

    doubled, raised = encode_shuffled(encode, images, batch, seed=1, deal=deal)
    assert torch.equal(doubled, images * 2)
    assert torch.equal(raised, images + 1)
    assert torch.equal(seen[0], images) != deal

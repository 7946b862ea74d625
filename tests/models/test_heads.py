from __future__ import annotations

import pytest
import torch
from torch import nn

from hapicl.models.heads import (
    batch_norm_head,
    dense_projection_head,
    global_average_pool,
    projection_head,
)


def test_a_dense_projection_head_is_a_projection_head_at_every_cell():
    cells, vectors = (
        dense_projection_head(6, 5, 4, batch_norm=False),
        projection_head(6, 5, 4, batch_norm=False),
    )
    for there, here in zip(cells, vectors, strict=True):
        if isinstance(here, nn.Linear):
            here.load_state_dict({"weight": there.weight.flatten(1), "bias": there.bias})
    features = torch.randn(2, 6, 3, 3)
    rows = vectors(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(cells(features), rows)


def test_batch_norm_stands_after_the_first_layer_only_where_asked():
    for build, norm in ((projection_head, nn.BatchNorm1d), (dense_projection_head, nn.BatchNorm2d)):
        assert [type(layer) for layer in build(6, 5, 4, batch_norm=True)][1] is norm
        assert not any(isinstance(layer, norm) for layer in build(6, 5, 4, batch_norm=False))


def test_pooling_is_the_mean_over_cells():
    features = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(global_average_pool(features), features.flatten(2).mean(2))


@pytest.mark.parametrize(
    ("last", "ends"), [("plain", [False, False]), ("scaled", [True, False]), ("none", None), ("bias", None)]
)
def test_what_follows_the_last_layer(last, ends):
    head = batch_norm_head(6, 5, 5, 4, last=last)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds[:7] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    *hidden, final = (layer for layer in head if isinstance(layer, nn.Linear))
    assert all(layer.bias is None for layer in hidden)
    assert (final.bias is not None) == (last == "bias")
    assert kinds[7:] == ([] if ends is None else ["BatchNorm1d"])
    if ends is not None:
        weights = (head[-1].weight, head[-1].bias)
        assert [value is not None and value.requires_grad for value in weights] == ends
        rows = head(torch.randn(64, 6))
        torch.testing.assert_close(rows.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones(4), rtol=0, atol=1e-3)

from __future__ import annotations

import torch
from torch import nn

from hapicl.models.heads import dense_projection_head, global_average_pool, projection_head


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

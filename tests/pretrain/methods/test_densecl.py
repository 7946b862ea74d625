from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from joint import TinyBackbone

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.models.heads import global_average_pool
from hapicl.pretrain.losses import dense_info_nce, info_nce
from hapicl.pretrain.methods.densecl import warm_up_steps
from hapicl.pretrain.methods.registry import method_class


def gradients(method, batch):
    output = method(batch)
    output.loss.backward()
    return output, {name: value.grad for name, value in method.named_parameters() if value.grad is not None}


def test_lambda_0_is_moco_v2_bit_for_bit(make_method, make_batch):
    ours, moco = make_method("densecl", lambda_dense=0.0), make_method("moco_v2")
    for step in range(3):
        batch = make_batch(seed=step)
        ours_output, found = gradients(ours, batch)
        output, expected = gradients(moco, batch)
        assert torch.equal(ours_output.loss, output.loss)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert not any(value.any() for name, value in found.items() if name.startswith("dense_head"))
        for method in (ours, moco):
            torch.optim.SGD(method.parameters(), lr=0.1).step()
            method.after_step(step, 10)
    state = ours.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in moco.state_dict().items())


def test_the_global_head_starts_from_kaimings_draw_and_its_copy_alike(make_method):
    method = make_method("densecl", dim=4096)
    first, _, last = method.head
    for layer in (first, last):
        assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.3)
        assert not layer.bias.any()
    assert last.weight.abs().max() > 2 * last.weight.std()  # normal, not uniform
    for online, copy in zip(method.head.parameters(), method.key_head.parameters(), strict=True):
        assert torch.equal(online, copy)


def test_the_loss_is_the_weighted_sum_in_one_direction(make_method, make_batch):
    method = make_method("densecl", batch_norm_groups=1, lambda_dense=0.3, warm_up_steps=0)
    batch = make_batch()
    queue, dense_queue = method.queue.rows.clone(), method.dense_queue.rows.clone()
    output = method(batch)
    features = method.backbone(batch.views[0])["layer4"]
    with torch.no_grad():
        others = method.key_backbone(batch.views[1])["layer4"]
        key, key_dense = method.key_head(global_average_pool(others)), method.key_dense_head(others)
    expected = 0.7 * info_nce(method.head(global_average_pool(features)), key, queue, temperature=0.2)
    expected = expected + 0.3 * dense_info_nce(
        method.dense_head(features).flatten(2),
        key_dense.flatten(2),
        features.flatten(2),
        others.flatten(2),
        dense_queue,
        temperature=0.2,
    )
    torch.testing.assert_close(output.loss, expected)


def test_the_dense_queue_grows_by_one_pooled_vector_an_image(make_method, make_batch):
    method, batch = make_method("densecl", batch_norm_groups=1, data_set_size=64), make_batch()
    assert len(method.dense_queue.rows) == 32
    method(batch)
    assert method.dense_queue.pointer == 8
    assert method.queue.pointer == 8
    with torch.no_grad():
        dense = method.key_dense_head(method.key_backbone(batch.views[1])["layer4"])
    # the mean of the head's output before it is normalised, then normalised
    torch.testing.assert_close(method.dense_queue.rows[:8], F.normalize(dense.mean((2, 3)), dim=1))


def test_no_batch_norm_in_the_heads(make_method):
    method = make_method("densecl")
    heads = (method.head, method.dense_head, method.key_head, method.key_dense_head)
    kinds = [type(layer).__name__ for head in heads for layer in head]
    assert kinds == ["Linear", "ReLU", "Linear", "Conv2d", "ReLU", "Conv2d"] * 2


def test_matches_come_from_the_backbone_not_the_head(make_method, make_batch):
    batch = make_batch()
    first, second = make_method("densecl"), make_method("densecl")
    with torch.no_grad():
        for value in second.dense_head.parameters():
            value.normal_()
    assert torch.equal(
        first(batch).metrics["dense/mutual_match_fraction"],
        second(batch).metrics["dense/mutual_match_fraction"],
    )
    by_head = [make_method("densecl", matching="head"), make_method("densecl", matching="head")]
    with torch.no_grad():
        for value in by_head[1].dense_head.parameters():
            value.normal_()
    fractions = [method(batch).metrics["dense/mutual_match_fraction"] for method in by_head]
    assert not torch.equal(*fractions)


def test_one_view_matches_itself(make_method, make_batch):
    batch = make_batch()
    batch.geometry = (batch.geometry[0], batch.geometry[0])
    metrics = make_method("densecl", matching="geometry")(batch).metrics
    assert metrics["dense/mutual_match_fraction"] == 1
    assert metrics["dense/match_distance_cells"] == 0


def test_foreground_matching_stays_within_the_mask_label(make_method, make_batch):
    method, batch = make_method("densecl", matching="foreground"), make_batch()
    features, others = torch.randn(2, 8, 5, 4, 4)
    match = method.match(features, others, features, others, batch)
    m1, m2 = (grid.flatten(1) >= 0.5 for grid in batch.occupancy)
    assert torch.equal(m2.gather(1, match), m1)
    config = method_class("densecl").Config(matching="foreground")
    assert method_class("densecl").needs(config, TinyBackbone(), image_size=64).grid == 4
    assert (
        not method_class("densecl")
        .needs(method_class("densecl").Config(), TinyBackbone(), image_size=64)
        .masks
    )


def test_another_grid_pools_features_and_head_alike(make_method, make_batch):
    method, batch = make_method("densecl", grid=3), make_batch()
    features, _, dense = method.queries(batch.views[0])
    assert features.shape[-2:] == dense.shape[-2:] == (3, 3)
    output, found = gradients(method, batch)
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(value).all() for value in found.values())


def test_lambda_steps_up_after_its_warm_up_and_is_announced(make_method, make_batch, caplog):
    with caplog.at_level(logging.INFO):
        method = make_method("densecl", total_steps=60)
    assert "lambda is 0 for the first 3 of 60 steps, then 0.5" in caplog.text
    weights = []
    for step in range(5):
        output = method(make_batch(seed=step))
        instance, dense = output.loss_terms["instance"], output.loss_terms["dense"]
        weights.append(round(((output.loss.detach() - instance) / (dense - instance)).item(), 3))
        said = method.after_step(step, 60)["lambda"]
    assert weights == [0, 0, 0, 0.5, 0.5]
    assert said == 0.5
    resumed = make_method("densecl", total_steps=60)
    resumed.load_state_dict(method.state_dict())
    assert resumed.steps_done == 5


@pytest.mark.parametrize(("total", "steps"), [(100, 5), (1_000_000, 10_000), (10, 0)])
def test_warm_up_is_at_most_a_twentieth_of_the_run(total, steps):
    assert warm_up_steps(method_class("densecl").Config(), total) == steps
    assert warm_up_steps(method_class("densecl").Config(warm_up_steps=7), total) == 7


def test_a_map_of_one_cell_is_refused_with_the_size_that_would_do(make_method, make_batch):
    config = method_class("densecl").Config()
    with pytest.raises(UserError, match=r"use 128 pixels \(4 x 4\)"):
        method_class("densecl").needs(config, TinyBackbone(), image_size=16)
    with pytest.raises(UserError, match="the map is 1 x 1"):
        make_method("densecl")(make_batch(side=16))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="choose 'backbone', 'geometry', 'head' or 'foreground'"):
        build(method_class("densecl").Config, {"matching": "nearest"})
    with pytest.raises(UserError, match=r"lambda_dense: should be at most 1, not 1\.5"):
        build(method_class("densecl").Config, {"lambda_dense": 1.5})

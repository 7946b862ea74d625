"""SimCLR, MoCo v2, BYOL and HARL."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from joint import TinyBackbone

from hapicl.common.errors import UserError
from hapicl.engine import batchnorm
from hapicl.models.backbones.build import build_backbone
from hapicl.models.heads import global_average_pool
from hapicl.pretrain.losses import info_nce
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.harl import three_vectors
from hapicl.pretrain.methods.registry import METHODS, method_class
from hapicl.pretrain.modules import momentum


def trained_names(method):
    return {name for name, value in method.named_parameters() if value.requires_grad}


def gradients(method, batch):
    output = method(batch)
    output.loss.backward()
    return output, {name: value.grad for name, value in method.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", ["simclr", "moco_v2", "byol", "harl"])
def test_every_trained_parameter_has_a_gradient_and_no_copy_has(make_method, make_batch, name):
    method = make_method(name)
    output, found = gradients(method, make_batch())
    assert set(found) == trained_names(method)
    assert not any(part.startswith(("key_", "target_")) for part in found)
    assert output.embeddings.shape[0] == 8
    logged = [*output.loss_terms.values(), *output.metrics.values()]
    assert not any(value.requires_grad for value in logged)


def test_simclr_references_its_chance_level(make_method, make_batch):
    output = make_method("simclr")(make_batch())
    assert output.references == {"instance": pytest.approx(math.log(15))}


def test_simclrs_head_ends_in_batch_norm_without_a_bias(make_method, make_batch):
    """As in the authors' code: three layers, BatchNorm on each; two by option, and HAPiCLR's plain end."""
    kinds = lambda **config: [  # noqa: E731
        type(layer).__name__ for layer in make_method("simclr", **config).head
    ]
    one = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds() == [*one, *one, "Linear", "BatchNorm1d"]
    assert kinds(head_layers=2) == [*one, "Linear", "BatchNorm1d"]
    assert kinds(head_layers=2, last_batch_norm=False) == [*one, "Linear"]
    method = make_method("simclr")
    method(make_batch()).loss.backward()
    assert method.head[-1].weight.grad is not None
    assert method.head[-1].bias.grad is None
    assert not method.head[-1].bias.any()
    assert [layer.out_features for layer in method.head if hasattr(layer, "out_features")] == [8, 8, 128]


@pytest.mark.parametrize("name", ["simclr", "byol", "hapicl_s"])
def test_residual_blocks_start_as_the_identity_where_the_recipe_says_so(name):
    kind = method_class(name)
    context = Context(data_set_size=8, batch_size=4, total_steps=1, steps_per_epoch=1)
    for zero in (True, False):
        config = kind.Config(zero_init_residual=zero)
        method = kind(config, context, build_backbone("resnet18", image_size=32))
        blocks = [*method.backbone.trunk.layer1, *method.backbone.trunk.layer4]
        assert [bool(block.bn2.weight.any()) for block in blocks] == [not zero] * 4
    with pytest.raises(UserError, match="zero_init_residual is of ResNets: leave it out"):
        kind(kind.Config(zero_init_residual=True), context, TinyBackbone())


def test_simclr_logs_the_mean_similarity_of_negatives(make_method, make_batch):
    method, batch = make_method("simclr"), make_batch()
    output = method(batch)
    z = F.normalize(
        method.head(global_average_pool(method.backbone(torch.cat(batch.views))["layer4"])), dim=1
    )
    cosine = z @ z.T
    pairs = torch.zeros(16, 16, dtype=torch.bool)
    for i in range(16):
        pairs[i, i] = pairs[i, (i + 8) % 16] = True
    expected = cosine[~pairs].mean()
    torch.testing.assert_close(output.metrics["similarity/negative"], expected.detach(), rtol=0, atol=1e-5)


def test_moco_contrasts_in_one_direction_and_queues_one_key_an_image(make_method, make_batch):
    method, batch = make_method("moco_v2", batch_norm_groups=1), make_batch()
    queue = method.queue.rows.clone()
    output = method(batch)
    query = method.head(global_average_pool(method.backbone(batch.views[0])["layer4"]))
    with torch.no_grad():
        key = method.key_head(global_average_pool(method.key_backbone(batch.views[1])["layer4"]))
    torch.testing.assert_close(output.loss, info_nce(query, key, queue, temperature=0.2))
    assert output.references == {"instance": pytest.approx(math.log(9))}
    torch.testing.assert_close(method.queue.rows, F.normalize(key, dim=1))


def test_moco_symmetric_is_the_mean_of_both_directions(make_method, make_batch):
    batch = make_batch()
    swapped = make_batch()
    swapped.views = swapped.views[::-1]
    config = {"batch_norm_groups": 1}
    both = make_method("moco_v2", symmetric=True, **config)(batch).loss
    one, other = (make_method("moco_v2", **config)(value).loss for value in (batch, swapped))
    torch.testing.assert_close(both, (one + other) / 2)


def test_moco_keys_have_batch_norm_statistics_of_other_samples(make_method, make_batch):
    """With split BatchNorm over a dealt batch a key's statistics are not those of its own query's group."""
    method, batch = make_method("moco_v2", batch_norm_groups=2), make_batch()
    plain = method.key_head(global_average_pool(method.key_backbone(batch.views[1])["layer4"]))
    dealt = method.keys(batch.views[1], batch)
    assert not torch.allclose(plain, dealt, atol=1e-4)
    again = method.keys(batch.views[1], batch)
    torch.testing.assert_close(dealt, again)


@pytest.mark.parametrize("name", ["moco_v2", "hapicl_m", "densecl"])
def test_what_was_left_open_is_settled_in_the_config_that_a_run_keeps(make_method, monkeypatch, name):
    """Resumed on four processes, a run begun on one would have chosen other BatchNorm groups."""
    begun = make_method(name, batch_size=96, data_set_size=1000).config
    assert (begun.batch_norm_groups, begun.queue_length) == (3, 480)
    for module in (batchnorm, momentum):
        monkeypatch.setattr(module, "world_size", lambda: 4)
    assert make_method(name, batch_size=96).config.batch_norm_groups == 4
    with pytest.raises(UserError, match=r"3 BatchNorm groups do not divide over 4 .* start fewer processes"):
        make_method(name, batch_size=96, batch_norm_groups=begun.batch_norm_groups)


@pytest.mark.parametrize("name", ["moco_v2", "hapicl_m", "densecl"])
def test_a_small_backbone_may_have_the_published_width_in_the_head(make_method, name):
    plain, wide = make_method(name), make_method(name, hidden=2048)
    assert [plain.head[0].out_features, wide.head[0].out_features] == [8, 2048]
    assert wide.key_head[0].out_features == 2048
    if name == "densecl":
        assert wide.dense_head[0].out_channels == 2048


def test_moco_starts_from_equal_encoders_and_keys_lag(make_method, make_batch):
    method = make_method("moco_v2", momentum=0.99)
    for online, copy in zip(method.backbone.parameters(), method.key_backbone.parameters(), strict=True):
        assert torch.equal(online, copy)
        assert not copy.requires_grad


def test_byol_predicts_the_other_views_target(make_method, make_batch):
    method, batch = make_method("byol", hidden=16, dim=8), make_batch()
    output = method(batch)
    p = [F.normalize(method.predict(view), dim=1) for view in batch.views]
    t = [F.normalize(method.target(view), dim=1) for view in batch.views]
    expected = (p[0] - t[1]).square().sum(1).mean() + (p[1] - t[0]).square().sum(1).mean()
    torch.testing.assert_close(output.loss, expected)
    assert output.references == {"instance": 4.0}


def test_byol_momentum_rises_and_the_target_follows(make_method, make_batch):
    method = make_method("byol", hidden=16, dim=8, momentum=0.9)
    assert method.after_step(0, 10) == {"schedule/momentum": pytest.approx(0.9)}
    assert method.after_step(10, 10) == {"schedule/momentum": 1.0}


def test_byol_views_differ_in_blur_and_solarisation():
    needs = method_class("byol").needs(method_class("byol").Config(), TinyBackbone(), image_size=224)
    first, second = (view.photometric for view in needs.views)
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)


def test_harl_vectors_are_the_masked_means_with_one_added():
    features, mask = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4)
    everywhere, front, back = three_vectors(features, mask)
    torch.testing.assert_close(everywhere, features.mean((2, 3)))
    for b in range(2):
        expected = (features[b] * mask[b]).sum((1, 2)) / (mask[b].sum() + 1)
        torch.testing.assert_close(front[b], expected)
        expected = (features[b] * (1 - mask[b])).sum((1, 2)) / ((1 - mask[b]).sum() + 1)
        torch.testing.assert_close(back[b], expected)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_mask_changed_harls_global_term_through_a_shared_batch_norm(make_method, make_batch, fraction):
    """Without weight on the masked terms HARL is BYOL, whatever the mask: same weights, same images."""
    batch, sizes = make_batch(), {"hidden": 16, "dim": 8}
    batch.occupancy = tuple((grid < fraction).float() for grid in batch.occupancy)
    byol = make_method("byol", **sizes)
    harl = make_method("harl", alpha=1.0, beta=1.0, beta_end=None, **sizes)
    expected, theirs = gradients(byol, batch)
    output, ours = gradients(harl, batch)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.loss_terms["instance"], expected.loss_terms["instance"])
    torch.testing.assert_close(ours, theirs)
    weighed = make_method("harl", alpha=0.3, beta=0.5, **sizes)(batch).loss_terms
    torch.testing.assert_close(weighed["instance"], expected.loss_terms["instance"])


def test_harl_weighs_global_foreground_and_background(make_method, make_batch):
    method, batch = make_method("harl", hidden=16, dim=8, alpha=0.25, beta=0.6, beta_end=None), make_batch()
    loss_terms = (output := method(batch)).loss_terms
    expected = 0.6 * loss_terms["instance"] + 0.4 * (
        0.25 * loss_terms["foreground"] + 0.75 * loss_terms["background"]
    )
    torch.testing.assert_close(output.loss.detach(), expected)


def test_harl_beta_goes_its_way_by_a_cosine_and_survives_a_checkpoint(make_method):
    method = make_method("harl", hidden=16, dim=8, beta=0.9, beta_end=0.0)
    assert method.beta == pytest.approx(0.9)
    assert method.after_step(4, 10)["schedule/beta"] == pytest.approx(0.45)
    assert method.state_dict()["beta"] == pytest.approx(0.45)
    assert method.after_step(9, 10)["schedule/beta"] == pytest.approx(0.0)


def test_harl_leaves_images_without_a_mask_out_of_the_masked_terms(make_method, make_batch):
    batch = make_batch()
    batch.has_mask[:4] = False
    first = make_method("harl", hidden=16, dim=8)
    loss_terms = first(batch).loss_terms
    p, t = first.predict(batch.views[0], batch.occupancy[0]), first.target(batch.views[1], batch.occupancy[1])
    q, s = first.predict(batch.views[1], batch.occupancy[1]), first.target(batch.views[0], batch.occupancy[0])
    kept = 4 - 2 * (p[1] * t[1]).sum(1)[4:] - 2 * (q[1] * s[1]).sum(1)[4:]
    torch.testing.assert_close(loss_terms["foreground"], kept.mean().detach())


def test_harl_survives_empty_and_full_masks(make_method, make_batch):
    batch = make_batch()
    batch.occupancy[0][0], batch.occupancy[1][0] = 0.0, 1.0
    _, found = gradients(make_method("harl", hidden=16, dim=8), batch)
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_says_what_it_is_and_needs(name):
    kind = method_class(name)
    assert kind.name == name
    assert kind.source
    needs = kind.needs(kind.Config(), TinyBackbone(), image_size=224)
    assert needs.views or needs.jigsaw


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(UserError, match=r"unknown method 'moco'; did you mean .*moco_v"):
        method_class("moco")

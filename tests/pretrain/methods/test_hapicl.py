"""The pixel term and HAPiCL's three systems."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from joint import TinyBackbone

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.models.backbones.build import build_backbone
from hapicl.models.heads import global_average_pool
from hapicl.pretrain.losses import cell_labels, info_nce, nt_xent, pixel_contrast
from hapicl.pretrain.methods.registry import method_class
from hapicl.pretrain.methods.shared.pixel_term import build_pixel_head, pixel_map

SYSTEMS = ("hapicl", "hapicl_s", "hapicl_m")


def gradients(method, batch):
    output = method(batch)
    output.loss.backward()
    return output, {name: value.grad for name, value in method.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    ("system", "plain", "plain_config"),
    [("hapicl_s", "simclr", {}), ("hapicl_m", "moco_v2", {"symmetric": True})],
)
def test_weight_0_is_the_instance_method_bit_for_bit(make_method, make_batch, system, plain, plain_config):
    shared = {"batch_norm_groups": 2} if plain == "moco_v2" else {}
    ours = make_method(system, pixel_weight=0.0, **shared)
    theirs = make_method(plain, **plain_config, **shared)
    for step in range(2):
        batch = make_batch(seed=step)
        ours_output, ours_gradients = gradients(ours, batch)
        output, plain_gradients = gradients(theirs, batch)
        assert torch.equal(ours_output.loss, output.loss)
        assert ours_gradients.keys() == plain_gradients.keys()
        assert all(torch.equal(ours_gradients[name], plain_gradients[name]) for name in plain_gradients)
        for method in (ours, theirs):
            torch.optim.SGD(method.parameters(), lr=0.1).step()
            method.after_step(step, 10)
    state = theirs.state_dict()
    assert ours.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_hapicl_s_is_nt_xent_plus_the_weighted_pixel_loss(make_method, make_batch):
    method, batch = make_method("hapicl_s", pixel_weight=0.5), make_batch()
    output = method(batch)
    maps = method.backbone(torch.cat(batch.views))
    z1, z2 = method.head(global_average_pool(maps["layer4"])).chunk(2)
    u1, u2 = method.pixel_head(maps["layer4"]).flatten(2).chunk(2)
    m1, m2 = (cell_labels(grid) for grid in batch.occupancy)
    instance, pixel = nt_xent(z1, z2, temperature=0.2), pixel_contrast(u1, u2, m1, m2)
    torch.testing.assert_close(output.loss, instance + 0.5 * pixel)
    torch.testing.assert_close(output.loss_terms["instance"], instance.detach())
    torch.testing.assert_close(output.loss_terms["pixel"], pixel.detach())


def test_hapicl_m_is_symmetric_info_nce_plus_both_pixel_directions(make_method, make_batch):
    method, batch = make_method("hapicl_m", batch_norm_groups=1), make_batch()
    queue = method.queue.rows.clone()
    output = method(batch)
    maps = [method.backbone(view)["layer4"] for view in batch.views]
    with torch.no_grad():
        keys = [method.key_backbone(view)["layer4"] for view in batch.views]
    z = [method.head(global_average_pool(value)) for value in maps]
    k = [method.key_head(global_average_pool(value)) for value in keys]
    u = [method.pixel_head(value).flatten(2) for value in maps]
    v = [method.key_pixel_head(value).flatten(2) for value in keys]
    m1, m2 = (cell_labels(grid) for grid in batch.occupancy)
    instance = (
        info_nce(z[0], k[1], queue, temperature=0.2) + info_nce(z[1], k[0], queue, temperature=0.2)
    ) / 2
    pixel = (pixel_contrast(u[0], v[1], m1, m2) + pixel_contrast(u[1], v[0], m2, m1)) / 2
    torch.testing.assert_close(output.loss, instance + pixel)


def test_no_gradient_reaches_the_momentum_encoder(make_method, make_batch):
    method = make_method("hapicl_m")
    _, found = gradients(method, make_batch())
    assert not any(name.startswith("key_") for name in found)
    trained = [name for name, value in method.named_parameters() if value.requires_grad]
    assert sorted(found) == sorted(trained)


def test_keys_follow_only_after_the_step(make_method, make_batch):
    method = make_method("hapicl_m", momentum=0.9)
    with torch.no_grad():
        for value in method.pixel_head.parameters():
            value.add_(1)
    before = [value.clone() for value in method.key_pixel_head.parameters()]
    method(make_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, method.key_pixel_head.parameters(), strict=True))
    assert method.after_step(0, 10) == {"schedule/momentum": 0.9}
    for old, new in zip(before, method.key_pixel_head.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1, rtol=0, atol=1e-6)


def test_each_view_has_a_queue_of_its_own_keys_as_released(make_method, make_batch):
    method, batch = make_method("hapicl_m", data_set_size=100, batch_norm_groups=1), make_batch()
    queue, second = method.queues
    assert len(queue.rows) == len(second.rows) == 48
    method(batch)
    assert (queue.pointer, second.pointer) == (8, 8)
    with torch.no_grad():
        k1, k2 = (method.keys(view, batch)[0] for view in batch.views)
    torch.testing.assert_close(queue.rows[:8], F.normalize(k2, dim=1))
    torch.testing.assert_close(second.rows[:8], F.normalize(k1, dim=1))
    queries = [method.queries(view)[0] for view in batch.views]
    expected = [
        info_nce(query, key, row.rows, temperature=0.2)
        for query, key, row in zip(queries, (k2, k1), (queue, second), strict=True)
    ]
    assert not torch.equal(queue.rows, second.rows)
    found = method(batch).loss_terms["instance"]
    torch.testing.assert_close(found, torch.stack(expected).mean().detach())


def test_one_queue_takes_the_keys_of_both_views_where_asked(make_method, make_batch):
    method = make_method("hapicl_m", data_set_size=100, queue_per_view=False)
    assert method.second_queue is None
    method(make_batch())
    assert method.queue.pointer == 16


def test_momentum_goes_from_099_to_0999_by_a_cosine_as_in_the_authors_script(make_method):
    method = make_method("hapicl_m", momentum=0.99, momentum_end=0.999)
    found = [method.after_step(step, 10)["schedule/momentum"] for step in (0, 5, 10)]
    assert found == [pytest.approx(0.99), pytest.approx(0.9945), pytest.approx(0.999)]


def test_the_second_view_has_a_photometric_policy_of_its_own_where_asked():
    kind = method_class("hapicl_m")
    second = {"blur": 0.1, "solarize": 0.2}
    for config, expected in (({}, (0.5, 0.0)), ({"photometric_second": second}, (0.1, 0.2))):
        needs = kind.needs(build(kind.Config, config), TinyBackbone(), image_size=224)
        policy = needs.views[1].photometric
        assert (policy.blur, policy.solarize) == expected
        assert needs.views[0].photometric.blur == 0.5


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    "config",
    [
        {"form": "anchor", "negatives": "batch"},
        {"negatives": "batch"},
        {"form": "image_released", "background_positives": False},
        {"form": "batch_released", "label_rule": "any"},
        {"ignore_band": (0.3, 0.7)},
        {"feature_level": "both"},
    ],
    ids=str,
)
def test_every_option_trains_every_parameter(make_method, make_batch, system, config):
    output, found = gradients(method := make_method(system, **config), make_batch())
    assert torch.isfinite(output.loss)
    assert len(found) == sum(value.requires_grad for value in method.parameters())
    assert all(torch.isfinite(value).all() for value in found.values())


def test_layer3_asks_for_a_grid_twice_as_fine_and_has_its_channels(make_method, make_batch):
    method = make_method("hapicl_s", feature_level="layer3")
    assert method.pixel_head[0].in_channels == 6
    needs = method.needs(method.config, method.backbone, image_size=64)
    assert needs.grid == 8
    assert torch.isfinite(method(make_batch(grid=8)).loss)
    config = method_class("hapicl_m").Config(feature_level="layer3")
    for size, cells in ((224, 14), (128, 8)):
        backbone = build_backbone("resnet18", image_size=size)
        assert method_class("hapicl_m").needs(config, backbone, image_size=size).grid == cells


@pytest.mark.parametrize(
    ("arch", "level", "channels"),
    [("resnet50", "both", 3072), ("resnet50", "layer4", 2048), ("resnet18", "both", 768)],
)
def test_pixel_heads_have_the_channels_of_their_level(arch, level, channels):
    config = method_class("hapicl_s").Config(feature_level=level)
    backbone = build_backbone(arch, image_size=64)
    head = build_pixel_head(config, backbone, released=(1024, 2048))
    assert (head[0].in_channels, head[0].out_channels, head[-1].out_channels) == (channels, 2048, 256)


def test_both_levels_are_concatenated_on_the_last_grid():
    config = method_class("hapicl_s").Config(feature_level="both")
    maps = {"layer3": torch.randn(2, 6, 8, 8), "layer4": torch.randn(2, 8, 4, 4)}
    joined = pixel_map(maps, config)
    assert joined.shape == (2, 14, 4, 4)
    torch.testing.assert_close(joined[:, :6, 1, 2], maps["layer3"][:, :, 2:4, 4:6].mean((2, 3)))


@pytest.mark.parametrize(("system", "widths"), [("hapicl_s", (1024, 2048)), ("hapicl_m", (2048, 2048))])
def test_released_heads_have_the_authors_widths(make_method, system, widths):
    head = make_method(system, pixel_head="released").pixel_head
    assert (head[0].out_channels, head[-1].out_channels) == widths


def test_dropped_images_and_fallback_crops_are_counted(make_method, make_batch):
    batch = make_batch()
    batch.occupancy[0][:2], batch.occupancy[1][:2] = 1.0, 1.0
    batch.has_mask[2] = False
    batch.fallback[:4] = True
    metrics = make_method("hapicl_m")(batch).metrics
    assert metrics["pixel/dropped_fraction"].item() == pytest.approx(3 / 8)
    assert metrics["mask/redraw_fallback_fraction"].item() == pytest.approx(0.5)
    assert metrics["mask/missing_fraction"].item() == pytest.approx(1 / 8)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_batch_without_any_pair_trains_the_instance_term_alone(make_method, make_batch, system, fraction):
    batch = make_batch()
    for grid in batch.occupancy:
        grid.fill_(fraction)
    method = make_method(system)
    output, found = gradients(method, batch)
    assert output.loss_terms["pixel"] == 0
    assert output.metrics["pixel/dropped_fraction"] == 1
    assert all(torch.isfinite(value).all() for value in found.values())
    assert not any(value.any() for name, value in found.items() if name.startswith("pixel_head"))


def test_the_gap_is_the_cosine_within_labels_less_the_cosine_across(make_method, make_batch):
    method, batch = make_method("hapicl_s"), make_batch()
    metrics = method(batch).metrics
    with torch.no_grad():
        cells = method.pixel_head(method.backbone(torch.cat(batch.views))["layer4"]).flatten(2)
    u1, u2 = torch.nn.functional.normalize(cells, dim=1).chunk(2)
    m1, m2 = (cell_labels(grid) for grid in batch.occupancy)
    within, across = [], []
    for b in range(8):
        for i in range(16):
            for j in range(16):
                value = float(u1[b, :, i] @ u2[b, :, j])
                (within if m1[b, i] == m2[b, j] else across).append(value)
    gap = sum(within) / len(within) - sum(across) / len(across)
    assert metrics["pixel/similarity_gap"].item() == pytest.approx(gap, abs=1e-5)


def test_the_pixel_loss_alone_warns_of_its_trivial_optimum(make_method, caplog):
    with caplog.at_level(logging.WARNING):
        make_method("hapicl")
    assert "figure from ground" in caplog.text
    caplog.clear()
    make_method("hapicl", negatives="batch")
    assert "figure from ground" not in caplog.text


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"form": "batch_released", "negatives": "batch"}, "use form image or anchor"),
        ({"pixel_weight": -1.0}, "pixel_weight: should be at least 0, not -1.0"),
        ({"ignore_band": (0.7, 0.3)}, "ignore_band: give two occupancies, the lower one first"),
        ({"label_rule": "most"}, "label_rule: choose 'area' or 'any', not 'most'"),
        ({"feature_level": "layer5"}, "choose 'layer4', 'layer3' or 'both'"),
        ({"pixel_head": "released", "pixel_dim": 64}, "leave those out"),
        ({"min_foreground": 1.5}, "min_foreground: should be at most 1"),
        ({"temperature": 0.0}, "temperature: should be above 0"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale: give the lower bound first"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_with_what_to_do(config, words):
    with pytest.raises(UserError, match=words):
        build(method_class("hapicl_m").Config, config)


def test_a_backbone_without_that_level_is_refused():
    class Flat(torch.nn.Module):
        channels = {"patches": 8}  # noqa: RUF012

    with pytest.raises(UserError, match="choose a ResNet"):
        build_pixel_head(method_class("hapicl_m").Config(), Flat(), released=(1, 1))


def test_needs_name_views_masks_and_redraws():
    config = method_class("hapicl_m").Config(min_foreground=0.2, redraws=3, vflip=0.5, crop_scale=(0.3, 1.0))
    needs = method_class("hapicl_m").needs(config, TinyBackbone(), image_size=96)
    assert (needs.grid, needs.min_foreground, needs.redraws, needs.masks) == (6, 0.2, 3, True)
    assert [(view.size, view.vflip, view.scale) for view in needs.views] == [(96, 0.5, (0.3, 1.0))] * 2

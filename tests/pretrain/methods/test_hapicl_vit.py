"""HAPiCL on patch tokens: both terms, labels on the patch grid, the slow pixel head."""

import pytest
import torch
from small_vit import GRID, SIDE, batch_for, small_method, small_vit, train

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.pretrain.losses import pixel_contrast
from hapicl.pretrain.methods.hapicl_vit import HAPiCLViT, HAPiCLViTConfig


def test_the_loss_is_moco_v3_plus_the_weighted_pixel_loss() -> None:
    torch.manual_seed(0)
    method = small_method("hapicl_vit", pixel_weight=0.7).double()
    batch = batch_for(method).map_tensors(
        lambda value: value.double() if value.is_floating_point() else value
    )
    output = method(batch)
    labels = [(grid >= 0.5).flatten(1) for grid in batch.occupancy]
    online = [method.pixel_head(method.backbone(view)["patches"]).flatten(2) for view in batch.views]
    slow = [method.key_pixel_head(method.key_backbone(view)["patches"]).flatten(2) for view in batch.views]
    pixel = pixel_contrast(online[0], slow[1], labels[0], labels[1])
    pixel = (pixel + pixel_contrast(online[1], slow[0], labels[1], labels[0])) / 2
    instance = 4 * 0.2 * output.loss_terms["instance"]
    torch.testing.assert_close(output.loss, instance + 0.7 * pixel)


def test_no_gradient_reaches_keys_and_all_else_has_one() -> None:
    method = small_method("hapicl_vit")
    method(batch_for(method)).loss.backward()
    for name, value in method.named_parameters():
        fixed = name.startswith("key_") or "patch_embed" in name or "pos_embed" in name
        assert (value.grad is None) == fixed, name


def test_the_slow_pixel_head_follows_too() -> None:
    method = small_method("hapicl_vit", momentum=0.0)
    with torch.no_grad():
        method.pixel_head[0].weight.add_(1)
    assert method.after_step(0, 10)["schedule/momentum"] == 0.0
    assert torch.equal(method.key_pixel_head[0].weight, method.pixel_head[0].weight)


def test_weight_zero_is_moco_v3() -> None:
    plain, ours = small_method("moco_v3"), small_method("hapicl_vit", pixel_weight=0.0)
    batch = batch_for(ours)
    torch.testing.assert_close(ours(batch).loss, plain(batch).loss)
    assert "pixel" not in ours(batch).loss_terms


def test_the_loss_falls_on_one_batch() -> None:
    method = small_method("hapicl_vit")
    batch = batch_for(method)
    loss_terms = method(batch).loss_terms
    train(method, batch, 40)
    after = method(batch).loss_terms
    assert after["instance"] < loss_terms["instance"]
    assert after["pixel"] < loss_terms["pixel"]


def test_needs_masks_on_the_patch_grid() -> None:
    needs = HAPiCLViT.needs(HAPiCLViTConfig(), small_vit(), image_size=SIDE)
    assert needs.grid == GRID
    assert needs.views[0].scale == (0.08, 1.0)
    assert needs.views[1].photometric.solarize == 0.2
    assert "own" in HAPiCLViT.source


def test_settings_of_a_resnet_are_refused() -> None:
    with pytest.raises(UserError, match="feature_level"):
        build(HAPiCLViTConfig, {"feature_level": "both"})
    with pytest.raises(UserError, match="pixel_head"):
        build(HAPiCLViTConfig, {"pixel_head": "released"})

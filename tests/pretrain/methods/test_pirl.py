"""PIRL, NPID, and the pretext tasks they are measured against."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint import TinyBackbone

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.data.loading.batch import NO_PHOTOMETRIC, PhotometricPolicy
from hapicl.pretrain.losses import bank_info_nce
from hapicl.pretrain.methods.registry import method_class
from hapicl.pretrain.methods.shared.pretext import (
    distant_permutations,
    jigsaw_policy,
    ordered,
    rotate_images,
    rotate_patches,
)

TRANSFORMS = ("jigsaw", "rotation", "rotation_jigsaw")


def gradients(method, batch):
    output = method(batch)
    output.loss.backward()
    return output, {name: value.grad for name, value in method.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("loss", ["infonce", "nce"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_form_trains_every_parameter(make_method, make_batch, transform, shared, loss):
    method = make_method("pirl", transform=transform, shared_negatives=shared, loss=loss)
    output, found = gradients(method, make_batch())
    assert torch.isfinite(output.loss)
    assert len(found) == len(list(method.parameters()))
    assert all(torch.isfinite(value).all() for value in found.values())


def test_the_loss_is_the_weighted_sum_against_the_same_negatives(make_method, make_batch):
    method, batch = make_method("pirl", lambda_transform=0.3, mlp=True), make_batch()
    output = method(batch)
    negatives = method.contrast.draw_negatives(batch)
    image = method.image_head(method.backbone(batch.views[0])["layer4"].mean((2, 3)))
    losses = [
        bank_info_nce(value, method.contrast.bank.rows, batch.index, negatives, temperature=0.07)
        for value in (method.transformed(batch), image)
    ]
    torch.testing.assert_close(output.loss, 0.3 * losses[0] + 0.7 * losses[1])


def test_at_equal_similarities_the_loss_is_its_closed_form(make_method, make_batch):
    method = make_method("pirl")
    method.contrast.bank.rows.fill_(128**-0.5)
    output = method(make_batch())
    assert output.loss.item() == pytest.approx(math.log(16), abs=1e-5)
    assert output.references["image"] == pytest.approx(math.log(16))


def test_negatives_are_clamped_below_the_data_set_and_never_the_samples_own(make_method, make_batch):
    method, batch = make_method("pirl", data_set_size=20), make_batch()
    rows = method.contrast.draw_negatives(batch)
    assert rows.shape == (8, 19)
    assert (rows != batch.index[:, None]).all()
    assert rows.min() >= 0
    assert rows.max() <= 19
    counts = torch.zeros(20)
    for step in range(200):
        batch.step = step
        counts += torch.bincount(method.contrast.draw_negatives(batch).flatten(), minlength=20)
    expected = torch.full((20,), 200 * 8 * 19 / 19.0)
    expected[batch.index] -= 200 * 19 / 19.0
    assert (counts - expected).abs().max() < 6 * expected.max().sqrt()


def test_negatives_depend_on_seed_epoch_and_step_alone(make_method, make_batch):
    first, again, batch = make_method("pirl"), make_method("pirl"), make_batch()
    torch.manual_seed(99)
    assert torch.equal(first.contrast.draw_negatives(batch), again.contrast.draw_negatives(batch))
    batch.step = 1
    assert not torch.equal(first.contrast.draw_negatives(batch), again.contrast.draw_negatives(make_batch()))


def test_only_the_image_head_writes_the_bank_and_only_after_the_step(make_method, make_batch):
    method, batch = make_method("pirl"), make_batch()
    before = method.contrast.bank.rows.clone()
    image = F.normalize(method.image_head(method.backbone(batch.views[0])["layer4"].mean((2, 3))), dim=1)
    method(batch).loss.backward()
    assert torch.equal(method.contrast.bank.rows, before)
    method.after_step(0, 10)
    expected = before.clone()
    expected[batch.index] = F.normalize(0.5 * before[batch.index] + 0.5 * image.detach(), dim=1)
    torch.testing.assert_close(method.contrast.bank.rows, expected)
    torch.testing.assert_close(method.contrast.bank.rows.norm(dim=1), torch.ones(len(before)))


def test_the_partition_is_estimated_once_frozen_and_kept(make_method, make_batch):
    method = make_method("pirl", loss="nce")
    assert method.contrast.partition == 0
    method(make_batch())
    frozen = method.contrast.partition.clone()
    assert frozen > 0
    method(make_batch(seed=1))
    assert torch.equal(method.contrast.partition, frozen)
    resumed = make_method("pirl", loss="nce")
    resumed.load_state_dict(method.state_dict())
    resumed(make_batch(seed=2))
    assert torch.equal(resumed.contrast.partition, frozen)


def test_the_bank_its_partition_and_its_paths_are_in_the_checkpoint(make_method, make_batch, tmp_path):
    method, batch = make_method("pirl", loss="nce"), make_batch()
    paths = [f"{number}.jpg" for number in range(16)]
    method.before_training(paths)
    method(batch)
    method.after_step(0, 10)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    resumed = make_method("pirl", loss="nce")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.before_training(paths)
    later = make_batch(seed=5)
    assert torch.equal(method(later).loss, resumed(later).loss)
    with pytest.raises(UserError, match=r"1 gone \(3.jpg\) and 1 new \(new.jpg\)"):
        resumed.before_training([*paths[:3], *paths[4:], "new.jpg"])


def test_npid_is_pirl_without_the_transform(make_method, make_batch):
    batch = make_batch()
    config = {"loss": "infonce", "negatives": 9}
    npid, pirl = make_method("npid", **config), make_method("pirl", lambda_transform=0.0, **config)
    output, found = gradients(npid, batch)
    theirs, expected = gradients(pirl, batch)
    assert torch.equal(output.loss, theirs.loss)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_patches_are_joined_in_the_permuted_order(make_method, make_batch):
    method, batch = make_method("pirl"), make_batch()
    vectors = method.transformed(batch)
    shuffled = make_batch()
    shuffled.patches = batch.patches.gather(
        1, batch.permutation[:, :, None, None, None].expand_as(batch.patches)
    )
    shuffled.permutation = torch.arange(9).expand(8, 9)
    # BatchNorm sees the same patches either way
    torch.testing.assert_close(method.transformed(shuffled), vectors)
    shuffled.permutation = shuffled.permutation.flip(1)
    assert not torch.allclose(method.transformed(shuffled), vectors, atol=1e-3)


def test_image_and_transform_heads_share_nothing(make_method):
    method = make_method("pirl")
    first = {id(value) for value in method.image_head.parameters()}
    assert first.isdisjoint(id(value) for value in method.transform_head.parameters())
    assert method.join_head.in_features == 9 * 128


@pytest.mark.parametrize(
    ("size", "crop", "patch"), [(224, 255, 64), (128, 147, 37), (64, 72, 18), (96, 108, 27)]
)
def test_jigsaw_keeps_its_proportions_at_other_sizes(size, crop, patch):
    policy = jigsaw_policy(size, 0.5, PhotometricPolicy())
    assert (policy.size, policy.patch, policy.size % 3) == (crop, patch, 0)
    assert policy.patch < policy.size // 3


def test_images_rotate_each_by_its_own_turns():
    images = torch.randn(4, 3, 5, 5)
    turns = torch.tensor([3, 0, 2, 1])
    rotated = rotate_images(images, turns)
    for image, turn, result in zip(images, turns.tolist(), rotated, strict=True):
        assert torch.equal(result, torch.rot90(image, turn, (1, 2)))


def test_rotated_patches_are_those_of_the_rotated_crop():
    crop = torch.randn(4, 3, 12, 12)
    turns = torch.arange(4)

    def cut(images):
        cells = images.unfold(2, 4, 4).unfold(3, 4, 4)
        return cells.permute(0, 2, 3, 1, 4, 5).reshape(4, 9, 3, 4, 4)

    assert torch.equal(rotate_patches(cut(crop), turns), cut(rotate_images(crop, turns)))


def test_ordered_puts_the_named_cell_in_each_place():
    values = torch.arange(9.0).view(1, 9, 1)
    permutation = torch.tensor([[2, 0, 1, 3, 4, 5, 8, 7, 6]])
    assert ordered(values, permutation).flatten().tolist() == permutation[0].tolist()


def test_permutations_are_distinct_distant_and_the_same_everywhere():
    chosen = distant_permutations(64)
    assert np.array_equal(chosen, distant_permutations(64))
    assert np.array_equal(np.sort(chosen, axis=1), np.tile(np.arange(9), (64, 1)))
    distances = [int((a != b).sum()) for a, b in itertools.combinations(chosen, 2)]
    # 9 x 8 = 72 is the most that differ everywhere but one place; random ones come as near as 3
    assert min(distances) >= 7
    assert np.mean(distances) > 8


def test_jigsaw_classifies_the_drawn_order(make_method, make_batch):
    method, batch = make_method("jigsaw", permutations=20, hidden=8), make_batch()
    output, found = gradients(method, batch)
    assert len(found) == len(list(method.parameters()))
    labels = method.draw_labels(batch)
    features = method.patch_head(method.backbone(batch.patches.flatten(0, 1))["layer4"].mean((2, 3))).view(
        8, 9, 8
    )
    rows = [torch.cat([features[b, cell] for cell in method.orders[labels[b]]]) for b in range(8)]
    expected = F.cross_entropy(method.order_head(torch.stack(rows)), labels)
    torch.testing.assert_close(output.loss, expected)
    assert output.references["permutation"] == pytest.approx(math.log(20))
    batch.step = 3
    assert not torch.equal(method.draw_labels(batch), labels)


@pytest.mark.parametrize("name", ["pirl", "npid"])
def test_the_bank_methods_normalised_over_the_whole_batch(make_method, name):
    """VISSL ran GPUs of 32 images with a BatchNorm each; the number of groups is kept for a resumed run."""
    for batch_size, groups in ((8, 1), (32, 1), (64, 2), (96, 3), (1024, 32)):
        method = make_method(name, batch_size=batch_size)
        assert method.config.batch_norm_groups == groups
        norm = method.backbone.first[1]
        assert (norm.groups if groups > 1 else type(norm)) == (groups if groups > 1 else torch.nn.BatchNorm2d)
    assert make_method(name, batch_size=64, batch_norm_groups=4).backbone.first[1].groups == 4


def test_jigsaws_patch_layer_has_batch_norm_as_vissls(make_method):
    kinds = [type(layer).__name__ for layer in make_method("jigsaw", permutations=20, hidden=8).patch_head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"]


def test_the_pretext_tasks_had_pirls_augmentation():
    """As in VISSL's configs: Jigsaw greys two images of three, as a whole; Rotation only crops and flips."""
    needs = lambda name: method_class(name).needs(  # noqa: E731
        method_class(name).Config(), TinyBackbone(), image_size=224
    )
    jigsaw = needs("jigsaw").jigsaw
    assert not jigsaw.photometric_per_patch
    assert jigsaw.photometric == PhotometricPolicy(jitter=0.0, grey=0.66, blur=0.0)
    assert needs("pirl").jigsaw.photometric_per_patch
    assert needs("rotation").views[0].photometric == NO_PHOTOMETRIC
    npid = needs("npid").views[0]
    assert npid.scale == (0.08, 1.0)
    assert npid.photometric == PhotometricPolicy(jitter=1.0, hue=0.4, grey=0.0, blur=0.0)


def test_jigsaw_asks_for_patches_alone():
    config = method_class("jigsaw").Config(permutations=10)
    needs = method_class("jigsaw").needs(config, TinyBackbone(), image_size=128)
    assert (needs.views, needs.masks, needs.jigsaw.size) == ((), False, 147)


def test_rotation_classifies_the_drawn_turn(make_method, make_batch):
    method, batch = make_method("rotation"), make_batch()
    output, found = gradients(method, batch)
    assert len(found) == len(list(method.parameters()))
    images = torch.stack(
        [
            torch.rot90(image, int(turn), (1, 2))
            for image, turn in zip(batch.views[0], batch.rotation, strict=True)
        ]
    )
    logits = method.classifier(method.backbone(images)["layer4"].mean((2, 3)))
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, batch.rotation))
    assert output.metrics["accuracy"] == (logits.argmax(1) == batch.rotation).float().mean()


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="choose 'jigsaw', 'rotation' or 'rotation_jigsaw'"):
        build(method_class("pirl").Config, {"transform": "colour"})
    with pytest.raises(UserError, match="choose 'infonce' or 'nce'"):
        build(method_class("npid").Config, {"loss": "hinge"})
    with pytest.raises(UserError, match="permutations: should be at least 2, not 1"):
        build(method_class("jigsaw").Config, {"permutations": 1})

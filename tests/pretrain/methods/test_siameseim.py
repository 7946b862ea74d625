"""SiameseIM: what takes a gradient, the six switches, what each form compares, EMA ends, refusals."""

import pytest
import torch
from small_vit import GRID, SIDE, batch_for, small_method, small_vit, train

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.data.loading.batch import NO_PHOTOMETRIC
from hapicl.models.backbones.build import build_backbone
from hapicl.models.tokens import TokenBatchNorm, patchify
from hapicl.pretrain.losses import unigrad
from hapicl.pretrain.losses.tokens import collapse_level, normalised_patches, second_moment, target_tokens
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.shared.pictures import SMALLEST_TILE
from hapicl.pretrain.methods.siameseim import RunningMoment, SiameseIM, SiameseIMConfig
from hapicl.pretrain.modules.patch_masking import draw_mask, split

V1 = {"form": "v1", "global_weight": 1.0, "dense_weight": 4.0}
FORMS = [{}, {"global_weight": 1.0}, {"norm": "layer"}, V1, {"target": "pixel"}, {"views": "same"}]


def seen_of(method, batch):
    return split(draw_mask(method.mask, batch, GRID, seed=1), method.hidden)[0]


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_reaches_target_or_patch_embedding_and_all_else_has_one(form) -> None:
    method = small_method("siameseim", **form)
    method(batch_for(method)).loss.backward()
    without = {name for name, value in method.named_parameters() if value.grad is None}
    fixed = {
        name
        for name, _ in method.named_parameters()
        if name.startswith("target_") or "patch_embed" in name or "pos_embed" in name
    }
    assert without == fixed
    assert any(name.startswith("target_") for name in fixed) == (form.get("target") != "pixel")


def test_the_patch_embedding_stays_at_its_random_start() -> None:
    method = small_method("siameseim")
    before = method.backbone.trunk.patch_embed.proj.weight.clone()
    slow = method.target_backbone.trunk.blocks[0].attn.qkv.weight.clone()
    train(method, batch_for(method), 3)
    assert torch.equal(method.backbone.trunk.patch_embed.proj.weight, before)
    assert torch.equal(method.target_backbone.trunk.patch_embed.proj.weight, before)
    assert not torch.equal(method.target_backbone.trunk.blocks[0].attn.qkv.weight, slow)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_falls_on_one_batch(form) -> None:
    method = small_method("siameseim", **form)
    losses = train(method, batch_for(method), 25)
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])


def test_the_released_loss_is_unigrad_of_all_patch_tokens() -> None:
    method = small_method("siameseim").double()
    batch = batch_for(method).map_tensors(
        lambda value: value.double() if value.is_floating_point() else value
    )
    output = method(batch)
    prediction, target = method.predict(batch, seen_of(method, batch)), method.targets(batch.views[1])
    assert prediction.shape == target.shape == (8, GRID**2, 48)
    wanted = unigrad(prediction, target, neg_weight=15.36 / 48)
    torch.testing.assert_close(output.loss, wanted)
    assert output.references == {"dense": pytest.approx(collapse_level(48, 15.36 / 48))}
    rows = target_tokens(target).flatten(0, 1)
    eigenvalues = torch.linalg.eigvalsh(second_moment(rows))
    rank = eigenvalues.sum() ** 2 / eigenvalues.square().sum()
    torch.testing.assert_close(output.metrics["dense/target_rank"], rank)
    estimate = prediction.flatten(0, 1) @ (
        torch.eye(48, dtype=torch.float64) + 15.36 / 48 * second_moment(rows)
    )
    explained = 1 - (estimate - rows).square().sum() / (rows - rows.mean(0)).square().sum()
    torch.testing.assert_close(output.metrics["dense/r2"], explained)


def test_global_loss_compares_the_means_over_the_patches() -> None:
    method = small_method("siameseim", global_weight=3.0, dense_weight=0.0).double()
    batch = batch_for(method).map_tensors(
        lambda value: value.double() if value.is_floating_point() else value
    )
    output = method(batch)
    sides = method.predict(batch, seen_of(method, batch)), method.targets(batch.views[1])
    wanted = 3 * unigrad(*(side.mean(1, keepdim=True) for side in sides), neg_weight=15.36 / 48)
    torch.testing.assert_close(output.loss, wanted)
    assert set(output.loss_terms) == {"global"}
    assert set(output.metrics) == {"global/target_rank", "global/r2"}


def test_first_version_weighs_the_means_one_and_the_centred_tokens_four() -> None:
    method = small_method("siameseim", **V1).double()
    batch = batch_for(method).map_tensors(
        lambda value: value.double() if value.is_floating_point() else value
    )
    output = method(batch)
    prediction, target = method.predict(batch, seen_of(method, batch)), method.targets(batch.views[1])
    total = 0.0
    for weight, sides in (
        (1, [side.mean(1) for side in (prediction, target)]),
        (4, [(side - side.mean(1, keepdim=True)).flatten(0, 1) for side in (prediction, target)]),
    ):
        u, v = (side / side.norm(dim=-1, keepdim=True) for side in sides)
        moment = torch.einsum("md,me->de", v, v) / len(v)
        energy = torch.einsum("md,de,me->m", u, moment, u)
        total = total + weight * (7.68 * energy - (u * v).sum(-1)).mean()
    torch.testing.assert_close(output.loss, total)


def test_the_running_moment_is_the_average_of_what_it_saw() -> None:
    moment = RunningMoment(3, 0.9).double()
    rows = [torch.randn(5, 3, dtype=torch.float64) for _ in range(3)]
    for one in rows:
        value = moment(one)
    weights = [0.9**2, 0.9, 1.0]
    wanted = sum(w * second_moment(one) for w, one in zip(weights, rows, strict=True)) / sum(weights)
    torch.testing.assert_close(value, wanted)
    moment.eval()
    torch.testing.assert_close(moment(rows[0]), wanted)  # looking changes nothing
    assert "total" in moment.state_dict()


def test_pixel_target_is_the_normalised_second_view() -> None:
    method = small_method("siameseim", target="pixel")
    batch = batch_for(method)
    output = method(batch)
    predicted = method.predict(batch, seen_of(method, batch))
    wanted = normalised_patches(patchify(batch.views[1], 8))
    torch.testing.assert_close(output.loss, (predicted - wanted).square().mean())
    assert method.after_step(0, 10) == {}


def test_views_and_colour_switches_change_what_is_asked_of_the_loader() -> None:
    def views(**config):
        return SiameseIM.needs(SiameseIMConfig(**config), small_vit(), image_size=SIDE).views

    first, second = views()
    assert (first.scale, first.hflip, second.same_geometry_as) == ((0.08, 1.0), 0.5, None)
    assert (first.photometric.blur, second.photometric.blur) == (1.0, 0.1)
    assert (first.photometric.solarize, second.photometric.solarize) == (0.0, 0.2)
    assert first.photometric.saturation == 0.2
    assert views(views="same")[1].same_geometry_as == 0
    assert [view.photometric for view in views(colour=False)] == [NO_PHOTOMETRIC] * 2


def test_norm_switch_changes_projector_and_decoder_not_the_encoder() -> None:
    for norm, found in (("batch", True), ("layer", False)):
        method = small_method("siameseim", norm=norm)
        for part in (method.projector, method.decoder, method.target_projector):
            assert any(isinstance(module, TokenBatchNorm) for module in part.modules()) == found
        assert not any(isinstance(module, TokenBatchNorm) for module in method.backbone.modules())


def test_only_the_seen_patches_of_the_first_view_matter() -> None:
    method = small_method("siameseim", norm="layer").eval()
    batch = batch_for(method)
    seen = seen_of(method, batch)
    before = method.predict(batch, seen)
    hidden = next(cell for cell in range(GRID**2) if cell not in seen[0].tolist())
    row, column = divmod(hidden, GRID)
    batch.views[0][0, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 7
    assert torch.equal(method.predict(batch, seen), before)
    first = int(seen[0, 0])
    row, column = divmod(first, GRID)
    batch.views[0][0, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 7
    assert not torch.equal(method.predict(batch, seen)[0], before[0])


def test_the_target_uses_its_own_batch_statistics() -> None:
    method = small_method("siameseim")
    images = batch_for(method).views[1]
    alone, among = method.targets(images[:2]), method.targets(images)[:2]
    assert not torch.allclose(alone, among, atol=1e-4)


def test_momentum_starts_at_the_base_and_ends_at_one() -> None:
    method = small_method("siameseim", total_steps=1000)
    assert method.after_step(0, 1000)["schedule/momentum"] == pytest.approx(0.995)
    assert method.after_step(500, 1000)["schedule/momentum"] == pytest.approx(0.9975)
    assert method.after_step(1000, 1000)["schedule/momentum"] == 1.0


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_copy_follows_at_zero_and_stays_at_one(momentum) -> None:
    method = small_method("siameseim", momentum=momentum)
    with torch.no_grad():
        for value in method.projector.parameters():
            value.add_(1)
    start = [value.clone() for value in method.target_projector.parameters()]
    method.after_step(0, 10)
    wanted = method.projector.parameters() if momentum == 0 else start
    assert all(torch.equal(*pair) for pair in zip(method.target_projector.parameters(), wanted, strict=True))


def test_a_foreground_bias_asks_for_masks() -> None:
    needs = SiameseIM.needs(SiameseIMConfig(foreground_bias=1.0), small_vit(), image_size=SIDE)
    assert needs.grid == GRID
    assert needs.min_foreground == 0
    method = small_method("siameseim", foreground_bias=1.0)
    assert method(batch_for(method)).loss.isfinite()
    assert not SiameseIM.needs(SiameseIMConfig(), small_vit(), image_size=SIDE).masks


def test_the_picture_shows_four_tiles_a_sample() -> None:
    method = small_method("siameseim").eval()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    ((title, picture),) = method.pictures(batch_for(method, images=3)).items()
    assert "cosine" in title
    side = SIDE * -(-SMALLEST_TILE // SIDE)
    assert picture.shape == (3 * (side + 4) - 4, 4 * (side + 4) - 4, 3)
    assert picture.std() > 10
    assert all(torch.equal(state[name], value) for name, value in method.state_dict().items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dense_weight": 0.0}, "one above 0"),
        ({"target": "pixel", "global_weight": 1.0}, "target=pixel"),
        ({"target": "pixel", "form": "v1"}, "target=pixel"),
        ({"views": "both"}, "views: .*not 'both'"),
        ({"norm": "group"}, "norm: .*not 'group'"),
        ({"mask_ratio": 1.2}, "mask_ratio"),
        ({"momentum": 1.2}, "momentum"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, message) -> None:
    with pytest.raises(UserError, match=message):
        build(SiameseIMConfig, config)


def test_a_small_grid_and_a_resnet_are_refused_with_a_next_step() -> None:
    context = Context(data_set_size=8, batch_size=8, total_steps=1, steps_per_epoch=1)
    with pytest.raises(UserError, match="stem=patch8"):
        SiameseIM(SiameseIMConfig(), context, small_vit(32))
    with pytest.raises(UserError, match="--arch vit_tiny_patch16_224"):
        SiameseIM(SiameseIMConfig(), context, build_backbone("resnet18", image_size=64))
    with pytest.raises(UserError, match=r"config\.heads"):
        SiameseIM(SiameseIMConfig(dim=100, heads=7), context, small_vit())

"""MAE: loss on the hidden patches only, against a loop; what the encoder sees; the picture."""

import pytest
import torch
from small_vit import GRID, batch_for, small_method, small_vit, train

from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.data.loading.batch import NO_PHOTOMETRIC
from hapicl.pretrain.methods.mae import MAE, MAEConfig
from hapicl.pretrain.methods.shared.pictures import GAP
from hapicl.pretrain.modules.patch_masking import split


def test_the_loss_against_a_loop() -> None:
    method = small_method("mae")
    batch = batch_for(method, images=2)
    (images,) = batch.views
    mask = method.draw(batch)
    predicted = method.predict(images, split(mask, method.hidden)[0])
    total, count = 0.0, 0
    for image in range(2):
        for cell in range(GRID**2):
            if not mask[image, cell]:
                continue
            row, column = divmod(cell, GRID)
            patch = images[image, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].flatten()
            wanted = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total, count = total + (predicted[image, cell] - wanted).square().mean(), count + 1
    assert count == 2 * 27  # three quarters of 36
    torch.testing.assert_close(method(batch).loss, total / count)


def test_raw_pixels_are_the_target_without_normalisation() -> None:
    method = small_method("mae", normalise=False)
    batch = batch_for(method)
    with torch.no_grad():
        method.decoder.out.weight.zero_()
        method.decoder.out.bias.zero_()
    mask = method.draw(batch)
    pixels = batch.views[0].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    output = method(batch)
    torch.testing.assert_close(output.loss, pixels[mask].square().mean())
    assert output.references == {}


def test_predicting_nothing_gives_the_reference() -> None:
    method = small_method("mae")
    with torch.no_grad():
        method.decoder.out.weight.zero_()
        method.decoder.out.bias.zero_()
    output = method(batch_for(method))
    assert output.loss.item() == pytest.approx(output.references["reconstruction"], rel=1e-3)


def test_the_encoder_sees_only_the_seen_patches() -> None:
    method = small_method("mae")
    batch = batch_for(method)
    (images,) = batch.views
    mask = method.draw(batch)
    seen, _ = split(mask, method.hidden)
    before = method.predict(images, seen)
    hidden = mask.view(-1, 1, GRID, GRID).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(method.predict(images + 5 * hidden, seen), before)
    assert not torch.equal(method.predict(images + 5 * ~hidden, seen), before)


def test_everything_trains_but_the_positions() -> None:
    method = small_method("mae")
    method(batch_for(method)).loss.backward()
    without = {name for name, value in method.named_parameters() if value.grad is None}
    assert without == {"backbone.trunk.pos_embed"}
    assert isinstance(method.backbone.trunk.norm, torch.nn.LayerNorm)


def test_the_loss_falls_on_one_batch() -> None:
    method = small_method("mae")
    losses = train(method, batch_for(method), 100, lr=5e-3)
    assert losses[-1] < 0.8  # under 0.995, what predicting nothing gives


def test_needs_one_view_without_colour_and_no_masks() -> None:
    needs = MAE.needs(MAEConfig(), small_vit(), image_size=48)
    (view,) = needs.views
    assert (view.scale, view.hflip, view.photometric) == ((0.2, 1.0), 0.5, NO_PHOTOMETRIC)
    assert not needs.masks
    biased = MAE.needs(MAEConfig(foreground_bias=-1.0), small_vit(), image_size=48)
    assert biased.grid == 6
    method = small_method("mae", foreground_bias=-1.0, mask_pattern="block")
    assert method(batch_for(method)).loss.isfinite()


@pytest.mark.parametrize("normalise", [True, False])
def test_the_picture_of_a_perfect_prediction_is_the_image(normalise, monkeypatch) -> None:
    method = small_method("mae", normalise=normalise).eval()
    batch = batch_for(method, images=2)
    from hapicl.models.tokens import patchify
    from hapicl.pretrain.losses.tokens import normalised_patches

    patches = patchify(batch.views[0], 8)
    perfect = normalised_patches(patches) if normalise else patches
    monkeypatch.setattr(method, "predict", lambda images, seen: perfect)
    ((_, picture),) = method.pictures(batch).items()
    side = 4 * 48  # a view is shown four times as large
    assert picture.shape == (2 * side + GAP, 3 * side + 2 * GAP, 3)
    image, seen, predicted = (picture[:, number * (side + GAP) :][:, :side] for number in range(3))
    assert abs(image.astype(int) - predicted).max() <= 1
    grey = (seen[:side] == 128).all(-1).mean()
    assert grey == pytest.approx(0.75, abs=0.02)


def test_a_decoder_whose_heads_do_not_divide_it_is_refused() -> None:
    with pytest.raises(UserError, match="decoder_dim 50"):
        build(MAEConfig, {"decoder_dim": 50})

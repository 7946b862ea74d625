"""The network, its loss, its samples and its file."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d

from hapicl.common.errors import UserError
from hapicl.common.iou import iou
from hapicl.maskgen import segment
from hapicl.maskgen.recipes import RECIPES
from hapicl.maskgen.refinement.agreement import Agreement, judge
from hapicl.maskgen.refinement.network import ForegroundNetwork, StagesEncoder
from hapicl.maskgen.refinement.prediction import (
    foreground_probability,
    load_network,
    merge_norms,
    refine,
    save_network,
)
from hapicl.maskgen.refinement.samples import FirstMasks, SampleSource, changed
from hapicl.maskgen.refinement.settings import RefineSettings
from hapicl.maskgen.refinement.training import mask_losses, new_network
from hapicl.models.backbones.build import build_backbone
from hapicl.models.write_weights import write_safetensors

ABOUT = {"image_size": 32, "network_weight": 0.5}


class Answer(torch.nn.Module):
    """A network that gives one answer for every image, or the red channel; it notes the sides it has seen."""

    def __init__(self, logits=None, *, fixed_size=True):
        super().__init__()
        self.logits, self.encoder, self.sides = logits, SimpleNamespace(fixed_size=fixed_size), []

    def forward(self, images):
        self.sides.append(images.shape[-1])
        if self.logits is None:
            return (images[:, :1] - 0.5) * 100
        return self.logits.expand(len(images), 1, -1, -1)


def some_masks(count, size=32, seed=0):
    """Red squares on black and their masks, all equally sure."""
    generator = np.random.default_rng(seed)
    images, masks = np.zeros((count, size, size, 3), np.uint8), np.zeros((count, size, size), np.uint8)
    for number in range(count):
        top, left = generator.integers(0, size // 2, 2)
        masks[number, top : top + size // 3, left : left + size // 3] = 255
        images[number, :, :, 0] = masks[number]
    return FirstMasks([f"{number}.png" for number in range(count)], images, masks, np.ones(count, np.float32))


@pytest.mark.parametrize(("size", "batch"), [(32, 2), (96, 3)])
def test_a_logit_for_every_pixel(size, batch):
    network = ForegroundNetwork(StagesEncoder(4)).eval()
    assert network(torch.rand(batch, 3, size, size)).shape == (batch, 1, size, size)


def test_losses_by_hand():
    logits, masks = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    masks[1] = 1
    entropy, dice = mask_losses(logits, masks, torch.tensor([1.0, 3.0]))
    assert entropy.item() == pytest.approx(np.log(2))
    # likely 1/2 everywhere: 1 - 1 / (1 + 1) and 1 - 5 / (1 + 4 + 1), weighing 1 and 3
    assert dice.item() == pytest.approx((1 * (1 - 1 / 2) + 3 * (1 - 5 / 6)) / 4)


def test_an_image_of_no_weight_counts_nothing():
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(2, 1, 4, 4, generator=generator), torch.ones(2, 1, 4, 4)
    both = mask_losses(logits, masks, torch.tensor([1.0, 0.0]))
    alone = mask_losses(logits[:1], masks[:1], torch.tensor([1.0]))
    torch.testing.assert_close(both, alone)


def test_the_mask_moves_with_its_image():
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 20:50] = 255
    for seed in range(20):
        image, moved = changed(np.repeat(mask[:, :, None], 3, axis=2), mask, np.random.default_rng(seed))
        inside, outside = image[moved > 0.99], image[moved < 0.01]
        assert 50 < len(inside) < 2000
        assert inside.min() > outside.max() + 0.3  # what gains and brightness leave of the contrast


def test_samples_depend_on_their_counters_alone():
    first = some_masks(11)

    def source():
        return SampleSource(first, batch_size=4, least_weight=0.1, seed=3, device=torch.device("cpu"))

    whole = list(source().batches(2))
    assert len(whole) == source().steps_per_epoch == 2
    (last,) = source().batches(2, first_step=1)
    torch.testing.assert_close(last.images, whole[1].images, rtol=0, atol=0)
    assert not torch.equal(next(source().batches(3)).images, whole[0].images)


def test_a_network_that_sees_the_image_agrees_and_one_answer_for_all_does_not():
    train, held_out = some_masks(30), some_masks(10, seed=1)
    seeing = judge(Answer(), train, held_out)
    assert seeing.network == pytest.approx(1)
    assert seeing.has_learned
    same = judge(
        Answer(torch.from_numpy(train.masks.mean(0) / 255 - 0.3).float()[None, None]), train, held_out
    )
    assert not same.has_learned
    assert same.constant < 0.5


def test_an_agreement_is_said_in_figures():
    assert "0.700" in Agreement(8, 0.7, 0.3).sentence()


def test_a_network_survives_its_file(tmp_path):
    network = new_network(RefineSettings(width=4), seed=1).eval()
    file = save_network(network, tmp_path / "a.safetensors", ABOUT)
    again = save_network(network, tmp_path / "b.safetensors", ABOUT)
    assert file.digest == again.digest
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    loaded = foreground_probability(image, load_network(file), 32)
    np.testing.assert_allclose(loaded, foreground_probability(image, network, 32), atol=1e-5)


def test_a_replaced_network_is_noticed(tmp_path):
    file = save_network(new_network(RefineSettings(width=4), seed=1), tmp_path / "a.safetensors", ABOUT)
    save_network(new_network(RefineSettings(width=4), seed=2), tmp_path / "a.safetensors", ABOUT)
    with pytest.raises(UserError, match="was replaced"):
        load_network(file)


@pytest.mark.parametrize(
    ("arch", "size"), [("resnet18", 64), ("test_vit", 32)], ids=["a ResNet", "a Vision Transformer"]
)
def test_an_encoder_comes_from_a_backbone_and_is_in_the_file(tmp_path, arch, size):
    stem = "patch8" if arch == "test_vit" else "auto"
    backbone = build_backbone(arch, image_size=size, stem=stem)
    about = {"arch": arch, "stem": backbone.stem, "image_size": str(size)}
    write_safetensors(backbone.export_state(), tmp_path / "backbone.safetensors", about)
    settings = RefineSettings(encoder=str(tmp_path / "backbone.safetensors"), image_size=size)
    network = new_network(settings, seed=0).eval()
    for name, value in network.encoder.backbone.export_state().items():
        torch.testing.assert_close(value, backbone.export_state()[name])
    images = torch.rand(2, 3, size, size)
    file = save_network(network, tmp_path / "network.safetensors", {**ABOUT, "image_size": size})
    (tmp_path / "backbone.safetensors").unlink()
    torch.testing.assert_close(load_network(file)(images), network(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("fixed", "sides"), [(False, [32, 40]), (True, [32, 32])])
def test_the_mirror_image_is_seen_a_quarter_larger_where_the_encoder_takes_it(fixed, sides):
    network = Answer(fixed_size=fixed)
    work = np.zeros((24, 48, 3), np.uint8)
    work[4:12, 30:44, 0] = 255  # to one side: a mirrored answer left mirrored would not fit
    likely = foreground_probability(work, network, 32)
    assert network.sides == sides
    assert likely.shape == (24, 48)
    assert iou(likely > 0.5, work[:, :, 0] > 0) > 0.9


def test_norms_are_merged_into_convolutions_of_our_own_kind_only():
    torch.manual_seed(0)
    network = ForegroundNetwork(StagesEncoder(4)).train()
    network(torch.rand(4, 3, 64, 64))  # statistics that are not those of a fresh network
    network.eval()
    images = torch.rand(2, 3, 64, 64)
    before = network(images)
    merge_norms(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network(images), before, atol=1e-5, rtol=1e-4)
    active = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), BatchNormAct2d(4)).eval()  # it rectifies as well
    merge_norms(active)
    assert isinstance(active[1], BatchNormAct2d)


def test_odd_images_have_a_defined_answer():
    network = new_network(RefineSettings(width=4), seed=1).eval()
    for size in ((1, 1), (2, 3), (1, 500), (10, 10)):
        found = refine(np.full((*size, 3), 9, np.uint8), network, RECIPES["refined"], 32)
        assert not found.mask.any()
        assert found.confidence == 0


def test_without_a_weight_the_network_changes_nothing(photographs):
    network = new_network(RefineSettings(width=4), seed=1).eval()
    recipe = RECIPES["refined"].replace(learned=0)  # what `segment` takes
    found = refine(photographs["coffee"], network, recipe, 32)
    np.testing.assert_array_equal(found.mask, segment(photographs["coffee"], recipe).mask)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("image_size", 100), ("rounds", 0), ("held_out", 0), ("network_weight", 1.5), ("encoder", "a\nb")],
)
def test_settings_that_cannot_be_are_refused(setting, value):
    with pytest.raises(UserError, match=setting):
        RefineSettings().replace(**{setting: value})

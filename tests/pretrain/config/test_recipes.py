"""The ResNet recipes build what they name, at the published rates."""

import re

import pytest
import torch

from hapicl.common.config import build
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain.config.recipe_files import default_recipe, load_recipe, recipe_names
from hapicl.pretrain.config.settings import RunSettings
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.registry import method_class

MASKED = ("hapicl", "hapicl_s", "hapicl_m", "harl")
METHODS = (*MASKED, "simclr", "moco_v2", "byol", "densecl", "pirl", "npid", "jigsaw", "rotation")
SCALES = ("small", "100k", "imagenet")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_builds_its_method(name, scale):
    settings = build(RunSettings, load_recipe(f"{name}_{scale}"))
    assert settings.method == name
    kind = method_class(name)
    config = build(kind.Config, settings.config, where="config.")
    with torch.device("meta"):
        backbone = build_backbone(settings.arch, image_size=settings.image_size, stem=settings.stem)
    needs = kind.needs(config, backbone, image_size=settings.image_size)
    assert needs.masks == (name in MASKED)
    assert set(settings.about) >= {"paper", "command", "hardware", "expected", "measured"}
    assert f"--recipe {name}_{scale}" in settings.about["command"]
    assert ("--masks" in settings.about["command"]) == needs.masks


@pytest.mark.parametrize("name", METHODS)
def test_small_recipes_leave_a_map_of_four_cells_and_a_queue_of_half_the_data(name):
    settings = build(RunSettings, load_recipe(f"{name}_small"))
    kind = method_class(name)
    config = build(kind.Config, settings.config, where="config.")
    backbone = build_backbone(settings.arch, image_size=settings.image_size, stem=settings.stem)
    assert settings.image_size // backbone.stride >= 4
    context = Context(data_set_size=1000, batch_size=settings.batch_size, total_steps=10, steps_per_epoch=5)
    with torch.device("meta"):
        method = kind(config, context, build_backbone(settings.arch, image_size=settings.image_size))
    if hasattr(method, "queue"):
        assert len(method.queue.rows) == 448


def test_small_recipes_share_one_optimiser_and_schedule():
    shared = [build(RunSettings, load_recipe(f"{name}_small")) for name in METHODS]
    keys = ("optimizer", "schedule", "arch", "image_size", "epochs", "batch_size")
    assert len({tuple(str(getattr(settings, key)) for key in keys) for settings in shared}) == 1


def test_small_recipes_have_what_small_data_wants():
    settings = {name: build(RunSettings, load_recipe(f"{name}_small")) for name in METHODS}
    configs = {name: build(method_class(name).Config, each.config) for name, each in settings.items()}
    assert {each.optimizer.weight_decay for each in settings.values()} == {5e-4}
    assert configs["moco_v2"].temperature == configs["hapicl_m"].temperature == 0.1
    assert {configs[name].hidden for name in ("moco_v2", "hapicl_m", "densecl", "byol", "harl")} == {2048}
    assert configs["byol"].dim == configs["harl"].dim == 256
    assert {configs[name].crop_scale for name in ("pirl", "npid", "rotation")} == {(0.2, 1.0)}
    assert configs["jigsaw"].permutations == 100


@pytest.mark.parametrize(
    ("name", "batch", "rate"),
    [
        ("moco_v2", 256, 0.03),
        ("densecl", 256, 0.03),
        ("hapicl_m", 512, 0.6),  # mocov2plus_MPLCL.sh
        ("hapicl_s", 1024, 1.2),
        ("simclr", 4096, 4.8),
        ("byol", 4096, 3.2),
        ("pirl", 1024, 0.12),
        ("npid", 256, 0.03),
        ("jigsaw", 256, 0.1),
        ("rotation", 256, 0.1),
    ],
)
def test_published_batches_and_rates(name, batch, rate):
    settings = build(RunSettings, load_recipe(f"{name}_imagenet"))
    assert settings.batch_size == batch
    assert settings.optimizer.lr(batch) == pytest.approx(rate)


def test_hapicls_recipes_claim_no_result_of_the_papers():
    for name in ("hapicl", "hapicl_s", "hapicl_m"):
        for scale in SCALES:
            about = load_recipe(f"{name}_{scale}")["about"]
            # what we measured is made from the claims table: tests/benchmarks/test_claims.py
            assert about["measured"] == "not run" or "docs/claims" in about["measured"]
            assert not any(character.isdigit() for character in about["expected"])


def test_recipes_are_found_by_the_size_of_the_data():
    assert default_recipe("hapicl_m", 1000) == "hapicl_m_small"
    assert default_recipe("hapicl_m", 118_000) == "hapicl_m_100k"
    assert default_recipe("hapicl_m", 1_281_167) == "hapicl_m_imagenet"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_the_script_or_table_of_its_numbers(name):
    about = load_recipe(name)["about"]
    assert len(about["numbers"]) > 10
    published = name.endswith("_imagenet") or name == "hapicl_m_imagenet_mocov2"
    if published and name not in ("hapicl_imagenet", "hapicl_vit_imagenet"):
        assert re.search(r"arXiv|\.sh|\.yaml|\.py|\.md|script", about["numbers"]), about["numbers"]
    else:
        assert re.search(r"this project|Wang|DenseCL", about["numbers"]), about["numbers"]


def test_the_imagenet_recipe_of_hapicl_m_had_moco_v2s_numbers_and_said_they_were_the_authors():
    """The script: rate .3, decay 3e-5, 512 images, 100 epochs, EMA .99 to .999, temperature .1."""
    script, moco = (
        build(RunSettings, load_recipe(name)) for name in ("hapicl_m_imagenet", "hapicl_m_imagenet_mocov2")
    )
    ours, theirs = (build(method_class("hapicl_m").Config, each.config) for each in (script, moco))
    assert (script.epochs, script.batch_size, script.schedule.warmup_epochs) == (100, 512, 10)
    assert (script.optimizer.base_lr, script.optimizer.weight_decay) == (0.3, 3e-5)
    assert (ours.temperature, ours.momentum, ours.momentum_end) == (0.1, 0.99, 0.999)
    first, second = (view.photometric for view in ours.views(224))
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert first.saturation == second.saturation == 0.2
    assert (ours.crop_scale, ours.vflip, 1 + ours.redraws) == ((0.08, 1.0), 0.5, 5)
    assert (ours.queue_length, ours.queue_per_view, ours.pixel_head) == (65536, True, "released")
    assert (ours.form, ours.label_rule) == ("batch_released", "any")
    assert (moco.epochs, moco.batch_size, moco.optimizer.lr(256)) == (200, 256, pytest.approx(0.03))
    assert (theirs.temperature, theirs.momentum, theirs.momentum_end) == (0.2, 0.999, None)


def test_hapicl_s_follows_its_script():
    settings = build(RunSettings, load_recipe("hapicl_s_imagenet"))
    config = build(method_class("hapicl_s").Config, settings.config)
    assert (settings.epochs, settings.batch_size, config.photometric.hue) == (100, 1024, 0.3)
    assert config.photometric.brightness == 0.8
    assert (config.head_layers, config.last_batch_norm) == (2, False)


def test_originals_that_start_residual_blocks_as_the_identity_do_so_here():
    for name in ("simclr_imagenet", "simclr_100k", "byol_imagenet", "byol_100k"):
        settings = build(RunSettings, load_recipe(name))
        assert build(method_class(settings.method).Config, settings.config).zero_init_residual

"""The ResNet recipes build what they name, at the published rates."""

import pytest
import torch

from hapicl.common.config import build
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain.config.recipe_files import default_recipe, load_recipe
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


@pytest.mark.parametrize(
    ("name", "batch", "rate"),
    [
        ("moco_v2", 256, 0.03),
        ("densecl", 256, 0.03),
        ("hapicl_m", 256, 0.03),
        ("hapicl_s", 1024, 1.2),
        ("simclr", 4096, 4.8),
        ("byol", 4096, 3.2),
        ("pirl", 1024, 0.12),
        ("npid", 256, 0.03),
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
            assert about["measured"] == "not run"
            assert not any(character.isdigit() for character in about["expected"])


def test_recipes_are_found_by_the_size_of_the_data():
    assert default_recipe("hapicl_m", 1000) == "hapicl_m_small"
    assert default_recipe("hapicl_m", 118_000) == "hapicl_m_100k"
    assert default_recipe("hapicl_m", 1_281_167) == "hapicl_m_imagenet"

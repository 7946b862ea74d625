"""The ViT recipes build what they name, at the published rates."""

import pytest
import torch

from hapicl.common.config import build
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain.config.recipe_files import default_recipe, load_recipe, recipe_names
from hapicl.pretrain.config.settings import RunSettings
from hapicl.pretrain.methods.base import Context
from hapicl.pretrain.methods.registry import method_class

METHODS = ("siameseim", "mae", "moco_v3", "hapicl_vit")
NAMES = [f"{method}_{scale}" for method in METHODS for scale in ("small", "100k", "imagenet")]
NAMES += ["sim_v1", "sim_v1_imagenet"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_its_method(name: str) -> None:
    settings = build(RunSettings, load_recipe(name))
    kind = method_class(settings.method)
    config = build(kind.Config, settings.config, where="config.")
    context = Context(data_set_size=1000, batch_size=settings.batch_size, total_steps=10, steps_per_epoch=5)
    with torch.device("meta"):  # ViT-B twice over takes no memory so
        backbone = build_backbone(settings.arch, image_size=settings.image_size, stem=settings.stem)
        method = kind(config, context, backbone)
    assert sum(value.numel() for value in method.parameters()) > 5e6
    needs = kind.needs(config, backbone, image_size=settings.image_size)
    assert needs.masks == (settings.method == "hapicl_vit")
    assert set(settings.about) >= {"paper", "command", "hardware", "expected", "measured"}
    assert name in settings.about["command"]


@pytest.mark.parametrize(
    ("name", "rate"), [("siameseim_imagenet", 1e-3), ("mae_imagenet", 2.4e-3), ("moco_v3_imagenet", 2.4e-3)]
)
def test_published_rates_at_the_batch_of_4096(name: str, rate: float) -> None:
    settings = build(RunSettings, load_recipe(name))
    assert settings.optimizer.lr(4096) == pytest.approx(rate)
    assert settings.schedule.warmup_epochs == 40
    # MoCo v3 hands every parameter to its optimiser alike
    assert settings.optimizer.decays_one_dimensional == (name == "moco_v3_imagenet")


def test_moco_v3_on_resnets_has_its_own_recipe() -> None:
    settings = build(RunSettings, load_recipe("moco_v3_resnet_imagenet"))
    config = build(method_class("moco_v3").Config, settings.config)
    assert (settings.optimizer.name, settings.optimizer.base_lr, settings.epochs) == ("lars", 0.3, 300)
    assert (config.temperature, config.crop_scale) == (1.0, (0.2, 1.0))
    assert build(RunSettings, load_recipe("moco_v3_100k")).stem == "patch16_heads12"


def test_small_recipes_share_one_optimiser_and_schedule() -> None:
    shared = [build(RunSettings, load_recipe(f"{method}_small")) for method in METHODS]
    keys = ("schedule", "arch", "image_size", "epochs", "batch_size")
    assert len({tuple(str(getattr(settings, key)) for key in keys) for settings in shared}) == 1
    rates = {settings.method: settings.optimizer.base_lr for settings in shared}
    assert rates == dict.fromkeys(METHODS, 1e-3) | {"mae": 2e-3}
    assert len({settings.optimizer.replace(base_lr=1.0) for settings in shared}) == 1


def test_the_preset_of_the_first_version() -> None:
    settings = build(RunSettings, load_recipe("sim_v1"))
    config = build(method_class(settings.method).Config, settings.config)
    assert settings.method == "siameseim"
    assert (config.form, config.global_weight, config.dense_weight) == ("v1", 1.0, 4.0)
    assert config.moment_decay == 0.99


def test_recipes_are_found_by_the_size_of_the_data() -> None:
    assert set(NAMES) <= set(recipe_names())
    for method in METHODS:
        assert default_recipe(method, 9_000) == f"{method}_small"
        assert default_recipe(method, 1_281_167) == f"{method}_imagenet"

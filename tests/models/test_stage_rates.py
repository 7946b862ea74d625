"""Rates that fall from the last stage to the first."""

import pytest
import torch
from small_vit import small_vit
from torch import nn

from hapicl.engine.optimizers import OptimizerSettings, build_optimizer
from hapicl.models.backbones.build import build_backbone
from hapicl.models.stage_rates import fine_tuning_groups, stage_groups


def rates(groups: list[dict]) -> dict[int, float]:  # type: ignore[type-arg]
    return {id(value): group.get("lr_scale", 1.0) for group in groups for value in group["params"]}


def test_every_parameter_of_a_resnet_is_in_one_stage() -> None:
    backbone = build_backbone("resnet18", image_size=64)
    groups = stage_groups(backbone, 0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(backbone.parameters()))
    rate = rates(groups)
    trunk = backbone.trunk  # type: ignore[union-attr]
    assert rate[id(trunk.conv1.weight)] == 0.5**4
    assert rate[id(trunk.layer4[1].conv2.weight)] == 1.0


def test_the_optimiser_gets_the_rates_and_no_decay_for_positions() -> None:
    backbone = small_vit()
    backbone.prepare_fine_tuning(0.1)
    model = nn.ModuleList([backbone, nn.Linear(48, 2)])
    optimizer = build_optimizer(
        fine_tuning_groups(model, backbone, 0.5),
        OptimizerSettings(name="adamw", base_lr=1.0, weight_decay=0.05),
        batch_size=256,
        device=torch.device("cpu"),
    )
    found = {
        id(value): (group["peak_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for value in group["params"]
    }
    assert found.keys() == {id(value) for value in model.parameters() if value.requires_grad}
    trunk = backbone.trunk
    assert found[id(model[1].weight)] == (1.0, 0.05)
    assert found[id(model[1].bias)] == (1.0, 0.0)
    assert found[id(trunk.norm.weight)] == (1.0, 0.0)
    assert found[id(trunk.blocks[1].attn.qkv.weight)] == (0.5, 0.05)  # the blocks lie before the last norm
    assert found[id(trunk.patch_embed.proj.weight)] == (0.125, 0.05)
    assert found[id(trunk.pos_embed)] == found[id(trunk.cls_token)] == (0.125, 0.0)


def test_no_decay_of_the_rate_trains_all_alike() -> None:
    backbone = small_vit()
    assert set(rates(stage_groups(backbone, 1.0)).values()) == {1.0}
    assert rates(stage_groups(backbone, 0.9))[id(backbone.trunk.cls_token)] == pytest.approx(0.9**3)

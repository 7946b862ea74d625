"""What runs that start from weights do besides: frozen stages, rates by depth, the pull, the warning."""

import json

import pulled
import pytest
import timm
import torch
import torchvision
from small_run import draw_images, write_box_masks
from two_processes import run_in_two

from hapicl.common.errors import UserError
from hapicl.engine.checkpoint import load_checkpoint
from hapicl.engine.distributed import World
from hapicl.pretrain import components as assembly
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.start import FeaturePull, Pull, feature_distance, parameter_groups, start_values
from hapicl.pretrain.train import pretrain

SMALL_VIT = {"arch": "test_vit", "stem": "patch8"}
VITS = {
    "mae": {**SMALL_VIT, "config": {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3}},
    "siameseim": {**SMALL_VIT, "config": {"mask_pattern": "random"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("start")
    draw_images(root / "images")
    write_box_masks(root / "images", root / "masks.h5")
    torch.manual_seed(7)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), root / "w.pth")
    torch.save(timm.create_model("test_vit").state_dict(), root / "vit.pth")
    return root


def settings(folder, overrides=(), **changes):
    weights = str(folder / ("vit.pth" if changes.get("arch") == "test_vit" else "w.pth"))
    options = {"method": "simclr", "masks": str(folder / "masks.h5"), "weights": weights}
    options |= {"image_size": 32, "batch_size": 4, "workers": 0, "device": "cpu", "steps": 4}
    return resolve(options | changes, overrides=overrides)[0]


def test_stages_are_named_as_on_the_command_line_or_as_a_list(folder):
    for text in ("freeze=stem,layer1", "freeze=[stem, layer1]", "freeze=stem, layer1"):
        assert settings(folder, [text]).freeze == ("stem", "layer1")


def test_a_run_keeps_its_frozen_stages_and_resumes_exactly(folder, tmp_path):
    frozen = ["freeze=stem,layer1", "freeze_batchnorm=true", "pull=0.1"]
    asked = {"method": "moco_v2", "overrides": frozen, "folder": folder}
    pretrain(settings(**asked, out=str(tmp_path / "whole")), show=False)
    pretrain(settings(**asked, out=str(tmp_path / "parts"), stop_after=2), show=False)
    pretrain(settings(**asked, out=str(tmp_path / "parts"), resume="auto"), show=False)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt")["module"] for name in ("whole", "parts"))
    assert [name for name, value in whole.items() if not torch.equal(value, parts[name])] == []
    start = torch.load(folder / "w.pth", weights_only=True)
    for name, value in start.items():
        kept = name.startswith(("conv1", "bn1", "layer1")) or "running" in name or "num_batches" in name
        if not name.startswith("fc."):
            assert torch.equal(whole[f"backbone.trunk.{name}"], value) == kept, name
            assert torch.equal(whole[f"key_backbone.trunk.{name}"], value) >= kept, name
    changes = {"method": "moco_v2", "out": str(tmp_path / "parts"), "resume": "auto"}
    other = settings(folder, ["freeze=stem"], **changes)
    with pytest.raises(UserError, match=r"another training: freeze was \['stem', 'layer1'\], is \['stem'\]"):
        pretrain(other, show=False)


@pytest.fixture
def assembled(folder):
    components = assembly.assemble(settings(folder, ["layer_decay=0.5", "pull=0.2"]), World())
    with components.loader:
        yield components


def test_rates_fall_by_stage_towards_the_image(assembled):
    groups = parameter_groups(assembled)
    scales = {id(value): group.get("lr_scale", 1.0) for group in groups for value in group["params"]}
    trunk = assembled.backbone.trunk
    parts = (trunk.conv1, trunk.layer1[0].conv1, trunk.layer3[0].bn1, trunk.layer4[1].conv2)
    assert [scales[id(part.weight)] for part in parts] == [0.0625, 0.125, 0.5, 1.0]
    assert all(scales[id(value)] == 1.0 for value in assembled.method.head.parameters())
    every = [id(value) for group in groups for value in group["params"]]
    assert sorted(every) == sorted(id(value) for value in assembled.method.parameters())
    assert groups[0].get("weight_decay") is None  # heads keep theirs
    assert {group["weight_decay"] for group in groups[1:]} == {0.0}


def test_the_pull_is_the_gradient_of_half_the_squared_distance(assembled):
    backbone = assembled.backbone
    pull = Pull(backbone, 0.2)
    start = [value.detach().clone() for value in backbone.parameters()]
    for value in backbone.parameters():
        value.data += torch.randn_like(value)
        value.grad = torch.zeros_like(value)
    backbone.trunk.conv1.weight.grad = None  # has no part in this step
    pull()
    given = [value.grad for value in backbone.parameters()]
    pairs = zip(backbone.parameters(), start, strict=True)
    distance = sum((value - origin).square().sum() for value, origin in pairs)
    expected = torch.autograd.grad(0.2 / 2 * distance, list(backbone.parameters()))
    assert given[0] is None
    for one, other in zip(given[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_a_strong_pull_keeps_a_run_near_its_start(folder, tmp_path):
    distances = []
    for name, overrides in (("free", []), ("pulled", ["pull=10", "optimizer.momentum=0"])):
        run = tmp_path / name
        overrides = [*overrides, "optimizer.base_lr=3", "schedule.name=constant"]
        pretrain(settings(folder, overrides, out=str(run)), show=False)
        state = load_checkpoint(run / "last.pt")["module"]
        start = torch.load(folder / "w.pth", weights_only=True)
        key = "layer4.1.conv2.weight"
        distances.append((state[f"backbone.trunk.{key}"] - start[key]).norm().item())
    assert distances[1] < 0.8 * distances[0]


def test_options_of_a_start_are_refused_without_one(folder):
    for text in ("freeze=stem", "freeze_batchnorm=true", "layer_decay=0.7", "pull=0.1", "feature_pull=1"):
        name = text.partition("=")[0]
        with pytest.raises(UserError, match=f"{name}: there are no weights to start from; give --weights"):
            settings(folder, [text], weights=None)
    with pytest.raises(UserError, match="recipe simclr_continue: there are no weights"):
        resolve({"masks": str(folder / "masks.h5")}, recipe="simclr_continue")


def test_the_recipe_for_a_start_is_named_where_another_is_taken(folder):
    options = {"method": "hapicl_s", "masks": str(folder / "masks.h5"), "weights": str(folder / "w.pth")}
    assert any("hapicl_s_continue" in note for note in resolve(options)[1])
    assert not any("random weights" in note for note in resolve(options, recipe="hapicl_s_continue")[1])
    assert not any("_continue" in note for note in resolve(options | {"method": "pirl"})[1])


def test_the_numbers_of_the_start_outlive_a_resume(assembled, tmp_path):
    rows = [
        {"step": 0, "knn/accuracy": 0.3},
        {"step": 1, "embedding/effective_rank": 9.0},
        {"step": 2, "embedding/effective_rank": 4.0, "knn/accuracy": 0.2},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = start_values(assembled, tmp_path, 2)
    assert found == {"knn/accuracy": 0.3, "embedding/effective_rank": 9.0}
    assert start_values(assembled, tmp_path, 0) == {}  # of a run that was here before


@pytest.mark.parametrize(
    ("method", "compared"),
    [("simclr", "map"), ("moco_v2", "pooled"), ("jigsaw", "map"), ("mae", "pooled"), ("siameseim", "map")],
)
def test_the_feature_pull_is_zero_at_the_start_and_a_loss_away_from_it(folder, method, compared):
    vit = method in VITS
    changes = VITS.get(method, {"config": {"permutations": 10, "hidden": 16}} if method == "jigsaw" else {})
    components = assembly.assemble(settings(folder, method=method, **changes), World())
    with components.loader:
        batch = next(components.loader.batches(0))
    backbone = components.backbone
    torch.manual_seed(0)
    plain = components.method(batch).loss
    FeaturePull(components.method, backbone, 2.0, compared)
    torch.manual_seed(0)
    output = components.method(batch)
    assert output.loss_terms["feature_pull"] == 0
    if method in {"simclr", "mae"}:  # the others have moved a queue or a moment meanwhile
        assert output.loss == plain
    part = backbone.trunk.blocks[0].mlp.fc1 if vit else backbone.trunk.layer4[0].conv1
    part.weight.data += 0.05 * torch.randn_like(part.weight)
    output = components.method(batch)
    term = output.loss_terms["feature_pull"]
    assert 0 < term < 4
    output.loss.backward()
    assert part.weight.grad.abs().sum() > 0
    names = components.method.state_dict()  # the frozen copy is no part of a checkpoint
    assert len([name for name in names if name.endswith(("conv1.weight", "fc1.weight"))]) > 0
    assert not any("start" in name for name in names)


def test_the_distance_of_features_is_that_of_unit_vectors_cell_by_cell_or_pooled():
    one, other = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    cells = [
        (one[b, :, i, j] / one[b, :, i, j].norm() - other[b, :, i, j] / other[b, :, i, j].norm())
        .square()
        .sum()
        for b in range(2)
        for i in range(2)
        for j in range(2)
    ]
    torch.testing.assert_close(feature_distance(one, other, "map"), torch.stack(cells).mean())
    pooled = [values.mean((2, 3)) / values.mean((2, 3)).norm(dim=1, keepdim=True) for values in (one, other)]
    expected = (pooled[0] - pooled[1]).square().sum(1).mean()
    torch.testing.assert_close(feature_distance(one, other, "pooled"), expected)
    tokens = [values.flatten(2).transpose(1, 2) for values in (one, other)]
    torch.testing.assert_close(feature_distance(*tokens, "map"), torch.stack(cells).mean())
    assert feature_distance(one, -one, "map").item() == pytest.approx(4)


def test_the_feature_pull_leads_back_to_the_start(folder):
    components = assembly.assemble(settings(folder), World())
    with components.loader:
        batch = next(components.loader.batches(0))
    # so strong that the method's own loss is nothing beside it
    FeaturePull(components.method, components.backbone, 1e6, "map")
    weight = components.backbone.trunk.layer4[0].conv1.weight
    away = 0.05 * torch.randn_like(weight)
    weight.data += away
    output = components.method(batch)
    output.loss.backward()
    weight.data -= 0.1 * away.norm() * weight.grad / weight.grad.norm()
    assert components.method(batch).loss_terms["feature_pull"] < output.loss_terms["feature_pull"]


def test_a_run_with_a_feature_pull_adds_it_to_its_loss_and_resumes_exactly(folder, tmp_path):
    pulled = ["optimizer.name=sgd", "optimizer.base_lr=0.1", "schedule.name=constant", "feature_pull=20"]
    pretrain(settings(folder, pulled, out=str(tmp_path / "whole")), show=False)
    pretrain(settings(folder, pulled, out=str(tmp_path / "parts"), stop_after=2), show=False)
    pretrain(settings(folder, pulled, out=str(tmp_path / "parts"), resume="auto"), show=False)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt")["module"] for name in ("whole", "parts"))
    assert [name for name, value in whole.items() if not torch.equal(value, parts[name])] == []
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss/feature_pull"] == 0
    last = rows[-1]
    assert last["loss/feature_pull"] > 0
    assert last["loss"] == pytest.approx(last["loss/instance"] + 20 * last["loss/feature_pull"], rel=1e-5)


def test_a_feature_pull_says_what_it_does_not_go_with(folder):
    with pytest.raises(UserError, match="feature_pull looks into the backbone, so it does not go with --com"):
        settings(folder, ["feature_pull=1"], compile=True)
    options = {"method": "simclr", "masks": str(folder / "masks.h5")}
    notes = resolve(options, overrides=["feature_pull_on=pooled"])[1]
    assert "warning: feature_pull_on has no effect without feature_pull" in notes


def test_the_feature_pull_is_the_same_in_two_processes(tmp_path):
    one, two = pulled.two_steps(0, 1, tmp_path), run_in_two(pulled.two_steps, tmp_path)[0]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-9, atol=0)
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, rtol=1e-9, atol=1e-9)

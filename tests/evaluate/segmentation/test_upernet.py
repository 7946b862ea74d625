"""UPerNet: its head against the published form, the maps it reads, sliding windows, a known answer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_vit import small_vit
from torch import nn

from hapicl.common.errors import UserError
from hapicl.evaluate.batches import TaskBatch
from hapicl.evaluate.finetune import RunStopped
from hapicl.evaluate.segmentation.data import (
    IGNORE,
    LabelledPixels,
    hold_out,
    paired_folders,
    with_classes,
)
from hapicl.evaluate.segmentation.protocols import PROTOCOLS, UPerNetProtocol
from hapicl.evaluate.segmentation.samples import SegmentationCrops
from hapicl.evaluate.segmentation.segment import evaluate_segmentation
from hapicl.evaluate.segmentation.upernet import UPerNet, choose_maps, sliding_logits
from hapicl.evaluate.settings import Runtime, change
from hapicl.models.backbones.base import Backbone
from hapicl.models.backbones.build import build_backbone
from hapicl.models.stage_rates import fine_tuning_groups

TINY = {
    "crop": "48",
    "side": "48",
    "batch_size": "4",
    "channels": "16",
    "auxiliary_channels": "8",
    "warmup_steps": "2",
    "lr": "2e-3",
    "layer_decay": "0.9",
    "scale": "[1.0, 1.25]",
}


@pytest.fixture
def data(halves: Path) -> tuple[LabelledPixels, LabelledPixels]:
    both = paired_folders(halves / "images", halves / "labels", void=9)
    return with_classes(*hold_out(both, 0.25), None)


def tiny(**changes: str) -> UPerNetProtocol:
    protocol = change(PROTOCOLS["seg-upernet-small"], TINY | changes)
    assert isinstance(protocol, UPerNetProtocol)
    return protocol


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def test_the_parameters_are_those_of_mmsegmentations_configuration() -> None:
    protocol = PROTOCOLS["ade-upernet"]
    assert isinstance(protocol, UPerNetProtocol)
    with torch.device("meta"):
        model = UPerNet(build_backbone("vit_base_patch16_224", image_size=512), protocol, classes=150)
    assert model.maps == ("block4", "block6", "block8", "block12")  # out_indices 3, 5, 7, 11 from 0
    width = 768

    def block(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side**2 + 2 * outputs  # BatchNorm's weight and bias

    doubling = 4 * width * width + width
    assert model.neck is not None
    assert parameters(model.neck) == 3 * doubling + 2 * width
    head = 4 * block(width, width, 1) + block(5 * width, width, 3)  # pooled context
    head += 3 * block(width, width, 1) + 3 * block(width, width, 3) + block(4 * width, width, 3)
    assert parameters(model.decode_head) == head + width * 150 + 150
    assert parameters(model.auxiliary_head) == block(width, 256, 3) + 256 * 150 + 150
    # of the whole, 86.4 M are the ViT-B with positions of 32 x 32 cells
    assert round(parameters(model) / 1e6, 1) == 163.3
    large = build_backbone_on_meta("vit_large_patch16_224")
    assert choose_maps(large, None) == ("block8", "block12", "block16", "block24")  # MAE-L's 7, 11, 15, 23


def build_backbone_on_meta(arch: str) -> Backbone:
    with torch.device("meta"):
        return build_backbone(arch, image_size=64)


def test_names_are_mmsegmentations_around_timms() -> None:
    names = set(UPerNet(small_vit(), tiny(), classes=3).state_dict())
    assert {
        "backbone.trunk.blocks.1.attn.qkv.weight",
        "neck.upsample_4x.0.weight",
        "neck.upsample_4x.1.running_mean",
        "neck.upsample_4x.3.bias",
        "neck.upsample_2x.0.weight",
        "decode_head.psp_modules.3.1.conv.weight",
        "decode_head.psp_modules.3.1.bn.running_var",
        "decode_head.bottleneck.conv.weight",
        "decode_head.lateral_convs.2.bn.weight",
        "decode_head.fpn_convs.2.conv.weight",
        "decode_head.fpn_bottleneck.bn.bias",
        "decode_head.conv_seg.bias",
        "auxiliary_head.convs.0.conv.weight",
        "auxiliary_head.conv_seg.weight",
    } <= names


def test_the_maps_of_a_vit_become_a_pyramid_and_logits_have_a_quarter_of_the_pixels() -> None:
    model = UPerNet(small_vit(), tiny(), classes=3).eval()
    with torch.no_grad():
        levels = model.levels(torch.zeros(1, 3, 64, 48))  # patches of 8: 8 x 6 cells
        assert [tuple(level.shape[2:]) for level in levels] == [(32, 24), (16, 12), (8, 6), (4, 3)]
        assert model.logits(torch.zeros(1, 3, 64, 48)).shape == (1, 3, 32, 24)


@pytest.mark.parametrize(
    ("maps", "behind"),
    [
        (None, ["block2"]),
        ("[block1, block1, block1, patches]", ["block2", "norm"]),
        ("[block1, block1, block1, block1]", []),
    ],
)
def test_all_that_is_trained_gets_a_gradient(maps: str | None, behind: list[str]) -> None:
    model = UPerNet(small_vit(), tiny(**({"maps": maps} if maps else {})), classes=3).train()
    images = torch.randint(0, 255, (2, 3, 48, 48), dtype=torch.uint8)
    model(TaskBatch(values=(images, torch.randint(0, 3, (2, 48, 48))), number=0, size=2)).loss.backward()
    without = {name for name, value in model.named_parameters() if value.requires_grad and value.grad is None}
    assert without == set()
    trunk = model.backbone.trunk
    trained = {"block2": trunk.blocks[1].mlp.fc1.weight, "norm": trunk.norm.weight}
    assert [name for name, value in trained.items() if value.requires_grad] == behind


def test_a_pyramid_read_in_part_is_trained_in_part() -> None:
    backbone = build_backbone("resnet18", image_size=64)
    model = UPerNet(backbone, tiny(maps="[layer1, layer1, layer2, layer3]"), classes=3).train()
    images = torch.randint(0, 255, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as --precision bf16
        batch = TaskBatch(values=(images, torch.randint(0, 3, (2, 48, 48))), number=0, size=2)
        model(batch).loss.backward()
    without = {name.split(".")[2] for name, value in model.named_parameters() if value.grad is None}
    assert without == {"layer4"}
    assert not any(value.requires_grad for value in backbone.stages()["layer4"][0].parameters())


def test_rates_fall_towards_the_image_and_positions_are_not_decayed() -> None:
    backbone = small_vit()
    model = UPerNet(backbone, tiny(), classes=3)
    groups = fine_tuning_groups(model, backbone, 0.5)
    rate = {id(value): group.get("lr_scale", 1.0) for group in groups for value in group["params"]}
    decay = {id(value): group.get("weight_decay") for group in groups for value in group["params"]}
    assert sorted(rate) == sorted(id(value) for value in model.parameters())
    trunk = backbone.trunk
    # two blocks: heads at the rate, then decay ** (blocks + 1 - i) for block i, the embedding being block 0
    for value, expected in (
        (model.decode_head.conv_seg.weight, 1.0),
        (trunk.blocks[1].mlp.fc1.weight, 0.5),
        (trunk.blocks[0].attn.qkv.weight, 0.25),
        (trunk.patch_embed.proj.weight, 0.125),
        (trunk.pos_embed, 0.125),
    ):
        assert rate[id(value)] == expected
    assert decay[id(trunk.pos_embed)] == decay[id(trunk.cls_token)] == 0.0
    assert decay[id(trunk.patch_embed.proj.weight)] is None
    assert trunk.pos_embed.requires_grad
    assert [block.drop_path1.drop_prob for block in trunk.blocks] == pytest.approx([0.0, 0.1])


def test_sliding_windows_cover_every_pixel_once_in_the_mean() -> None:
    images = torch.arange(2 * 3 * 10 * 13, dtype=torch.float32).reshape(2, 3, 10, 13)
    seen: list[torch.Size] = []

    def identity(window: torch.Tensor) -> torch.Tensor:
        seen.append(window.shape[2:])
        return window

    torch.testing.assert_close(sliding_logits(identity, images, crop=4, stride=3), images)
    assert len(seen) == 3 * 4  # rows begin at 0, 3, 6; columns at 0, 3, 6, 9
    assert set(seen) == {torch.Size((4, 4))}
    assert torch.equal(sliding_logits(identity, images[:, :, :3, :3], crop=4, stride=3), images[:, :, :3, :3])


def test_overlapping_windows_are_averaged() -> None:
    calls = iter((0.0, 1.0))
    found = sliding_logits(
        lambda window: torch.full((1, 1, 2, 2), next(calls)), torch.zeros(1, 3, 4, 6), crop=4, stride=2
    )
    assert found[0, 0, 0].tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


def test_crops_are_scaled_from_the_short_side(data: tuple[LabelledPixels, LabelledPixels]) -> None:
    # pictures of 64 pixels at a short side of 32: half of a crop of 64 is padding
    samples = SegmentationCrops(data[0], tiny(crop="64", side="32", scale="[1.0, 1.0]"))
    _, labels = samples.sample(0, np.random.default_rng(0))
    assert (labels[32:] == IGNORE).all()
    assert (labels[:28] != IGNORE).any()


@pytest.mark.parametrize("kind", ["vit", "pyramid"])
def test_it_learns_halves(kind: str, data: tuple[LabelledPixels, LabelledPixels]) -> None:
    torch.manual_seed(0)
    backbone = small_vit() if kind == "vit" else build_backbone("timm:test_resnet", image_size=128)
    outcome = evaluate_segmentation(backbone, *data, tiny(steps="30"), seed=0, runtime=Runtime())
    assert outcome.metrics["miou"] > 0.85


def test_it_resumes_bit_for_bit_with_drop_path(
    data: tuple[LabelledPixels, LabelledPixels], tmp_path: Path
) -> None:
    protocol = tiny(steps="4", batch_size="2", drop_path="0.5")

    def run(folder: str, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        runtime = Runtime(folder=tmp_path / folder, stop_after=stop_after)
        evaluate_segmentation(small_vit(), *data, protocol, seed=3, runtime=runtime)
        return dict(torch.load(tmp_path / folder / "seed3/last.pt", weights_only=True)["module"])

    whole = run("whole")
    with pytest.raises(RunStopped, match="after step 3 of 4"):
        run("parts", stop_after=3)
    resumed = run("parts")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"no map 'block7'; did you mean .* it has block1, block2, patches"):
        UPerNet(small_vit(), tiny(maps="[block1, block1, block2, block7]"), classes=2)
    with pytest.raises(UserError, match="under two patches of 8"):
        UPerNet(small_vit(), tiny(crop="15"), classes=2)
    with pytest.raises(UserError, match="measure this one with seg-probe"):
        UPerNet(build_backbone("timm:test_vit4", image_size=64), tiny(), classes=2)
    for wrong, said in (
        ({"stride": "1.5"}, "at most 1"),
        ({"batch_size": "1"}, "at least 2"),
        ({"maps": "[block1, block2]"}, "maps"),
    ):
        with pytest.raises(UserError, match=said):
            tiny(**wrong)

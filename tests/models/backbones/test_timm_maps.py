"""timm's networks as backbones: maps, names, strides, stages, and what timm cannot do said in a line."""

import pytest
import timm
import torch

from hapicl.common.errors import UserError
from hapicl.models.backbones.base import Backbone
from hapicl.models.backbones.build import build_backbone
from hapicl.models.weights import load_backbone

SIZES = {  # smallest of each make that timm has, and the views it is tried with
    "timm:test_convnext": 64,
    "timm:test_resnet": 64,
    "timm:test_efficientnet": 64,
    "timm:mobilenetv4_conv_small": 128,
    "timm:swin_tiny_patch4_window7_224": 128,
}


def make(arch: str) -> Backbone:
    return build_backbone(arch, image_size=SIZES[arch])


@pytest.mark.parametrize("arch", SIZES)
def test_four_maps_by_name_and_every_parameter_in_one_stage_has_a_gradient(arch: str) -> None:
    with torch.device("meta"):
        told = make(arch).cells_per_side(SIZES[arch])
    backbone = make(arch).train()
    maps = backbone(torch.randn(2, 3, SIZES[arch], SIZES[arch]))
    assert list(maps) == ["layer1", "layer2", "layer3", "layer4"]
    assert {name: values.shape[1] for name, values in maps.items()} == backbone.channels
    for name, values in maps.items():
        assert values.shape[2:] == (backbone.cells_per_side(SIZES[arch], name),) * 2
    assert told == maps["layer4"].shape[2] >= 4
    maps["layer4"].square().mean().backward()
    assert [name for name, value in backbone.named_parameters() if value.grad is None] == []
    staged = [
        id(value)
        for parts in backbone.stages().values()
        for part in parts
        for value in ([part] if isinstance(part, torch.nn.Parameter) else part.parameters())
    ]
    assert sorted(staged) == sorted(id(value) for value in backbone.parameters())
    assert list(backbone.stages()) == ["stem", "layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize("arch", SIZES)
def test_weights_go_back_into_timm_under_its_own_names(arch: str) -> None:
    backbone = make(arch).eval()
    own = backbone.stride == 32
    options = (
        {"img_size": SIZES[arch]} if "swin" in arch else {} if own else {"output_stride": backbone.stride}
    )
    model = timm.create_model(arch.removeprefix("timm:"), num_classes=0, **options).eval()
    loaded = model.load_state_dict(backbone.export_state(), strict=False)
    assert loaded.unexpected_keys == []
    behind = ("norm.", "head.", "conv_head", "bn2", "norm_head")
    assert all(name.startswith(behind) for name in loaded.missing_keys)
    images = torch.randn(1, 3, SIZES[arch], SIZES[arch])
    with torch.no_grad():
        expected = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)[-1]
        torch.testing.assert_close(backbone(images)["layer4"], expected)


def test_small_images_get_a_smaller_stride_where_timm_has_one() -> None:
    assert [build_backbone("timm:test_resnet", image_size=side).stem for side in (128, 64, 32)] == [
        "stride32",
        "stride16",
        "stride8",
    ]
    assert build_backbone("timm:test_resnet", image_size=128, stem="stride8").cells_per_side(128) == 16


@pytest.mark.parametrize(
    ("arch", "size", "stem", "message"),
    [
        ("timm:mobilenetv4_conv_small", 64, "auto", "smallest stride being 32; use at least 128 pixels"),
        ("timm:test_convnext", 16, "auto", "smallest stride being 8; use at least 32 pixels"),
        (
            "timm:mobilenetv4_conv_small",
            128,
            "stride8",
            "no form whose last map is of stride 8; its own is 32",
        ),
        ("timm:test_resnet", 64, "patch8", "unknown stem 'patch8' .*choose auto or stride32"),
        ("timm:convnext_attoo", 64, "auto", "timm has no model 'convnext_attoo'.*timm:convnext_atto"),
        ("convnext_atto", 64, "auto", "unknown backbone 'convnext_atto'.*timm:NAME"),
    ],
)
def test_what_timm_cannot_do_is_said(arch: str, size: int, stem: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(arch, image_size=size, stem=stem)


def test_maps_that_are_all_alike_give_one_map_and_blocks_as_stages() -> None:
    backbone = build_backbone("timm:test_vit4", image_size=64)
    assert list(backbone.channels) == ["layer4"]
    assert not backbone.has_pyramid
    assert list(backbone.stages())[:3] == ["stem", "block1", "block2"]
    assert backbone(torch.randn(1, 3, 64, 64))["layer4"].shape[2:] == (4, 4)


def test_borders_are_rounded_as_the_network_does() -> None:
    backbone = build_backbone("timm:test_convnext", image_size=128)
    # a patch of 4 leaves 25 cells of 100 pixels, then 12, 6 and 3: not 4, as for padded convolutions
    assert backbone.cells_per_side(100) == 3
    assert build_backbone("timm:test_resnet", image_size=128).cells_per_side(100) == 4


def test_looking_for_the_cells_changes_nothing() -> None:
    backbone = build_backbone("timm:test_resnet", image_size=64).train()
    backbone.freeze(["stem"])
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    backbone.cells_per_side(96)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert [module.training for module in backbone.modules()] == modes


def test_timms_files_fill_it_and_its_own_files_name_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = timm.create_model("test_convnext")  # with its head
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone, info = load_backbone(str(tmp_path / "w.pth"), arch="timm:test_convnext", image_size=64)
    assert (info.fraction, info.stem) == (1.0, "stride16")
    assert torch.equal(backbone.export_state()["stem.0.weight"], model.stem[0].weight)


def test_tables_of_another_window_are_resampled(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = timm.create_model("swin_tiny_patch4_window7_224")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    arch = "timm:swin_tiny_patch4_window7_224"
    backbone, info = load_backbone(str(tmp_path / "w.pth"), arch=arch, image_size=128)
    assert info.fraction == 1.0
    last = "layers.3.blocks.0.attn.relative_position_bias_table"
    assert backbone.export_state()[last].shape[0] == 49  # a window of 4: the map has no more cells
    assert not backbone.has_pyramid  # for images of one size
    with pytest.raises(
        UserError, match="built for images of 128 x 128 pixels and takes no others, such as 96"
    ):
        backbone(torch.zeros(1, 3, 96, 96))


def test_a_smaller_stride_of_the_same_weights() -> None:
    backbone = build_backbone("timm:test_resnet", image_size=128).eval()
    dilated = backbone.at_stride(8)
    assert (dilated.stride, backbone.at_stride(32) is backbone) == (8, True)
    assert torch.equal(dilated.export_state()["conv1.0.weight"], backbone.export_state()["conv1.0.weight"])
    with torch.no_grad():
        assert dilated(torch.randn(1, 3, 128, 128))["layer4"].shape[2:] == (16, 16)

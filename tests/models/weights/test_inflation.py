"""Weights for RGB in networks of other channels: first layers are inflated, the rest is the file's."""

import pytest
import timm
import torch
import torchvision

from hapicl.common.errors import UserError
from hapicl.data.images.inputs import Inputs
from hapicl.models.backbones.build import build_backbone
from hapicl.models.registry import REGISTERED, register
from hapicl.models.weights import fill_backbone

NETWORKS = {
    "resnet18": ("resnet18", "imagenet"),
    "test_vit": ("test_vit", "patch8"),
    "timm:test_resnet": ("test_resnet", "auto"),
    "timm:test_convnext": ("test_convnext", "auto"),
    "timm:test_efficientnet": ("test_efficientnet", "auto"),
}


@pytest.mark.parametrize("arch", NETWORKS)
@pytest.mark.parametrize("channels", [1, 6])
def test_channels_of_the_same_values_give_the_features_of_rgb(tmp_path, arch, channels):
    name, stem = NETWORKS[arch]
    torch.manual_seed(0)
    source = torchvision.models.resnet18() if arch == "resnet18" else timm.create_model(name)
    torch.save(source.state_dict(), tmp_path / "rgb.pth")
    images = torch.randn(2, 3, 64, 64)
    # as many copies of each colour, or grey
    images, other = (
        (images, images.repeat(1, 2, 1, 1))
        if channels == 6
        else (
            images[:, :1].repeat(1, 3, 1, 1),
            images[:, :1],
        )
    )
    maps = []
    for inputs, given in ((Inputs(), images), (Inputs(in_channels=channels), other)):
        backbone = build_backbone(arch, image_size=64, stem=stem, inputs=inputs).eval()
        info = fill_backbone(backbone, str(tmp_path / "rgb.pth"), arch)
        assert (info.fraction, backbone.in_channels) == (1.0, inputs.in_channels)
        with torch.no_grad():
            maps.append(backbone(given)[backbone.last])
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-4)


def test_a_first_layer_of_other_channels_was_left_random(tmp_path):
    five = build_backbone("resnet18", image_size=64, inputs=Inputs(in_channels=5))
    torch.save(five.export_state(), tmp_path / "five.pth")
    for channels in (3, 4):
        backbone = build_backbone("resnet18", image_size=64, inputs=Inputs(in_channels=channels))
        with pytest.raises(
            UserError, match=f"is of images of 5 channels, and in_channels is {channels}; only"
        ):
            fill_backbone(backbone, str(tmp_path / "five.pth"), "resnet18")


def test_a_network_of_ones_own_says_its_channels():
    before = dict(REGISTERED)
    try:
        four = build_backbone("resnet18", image_size=64, inputs=Inputs(in_channels=4))
        register("mine", lambda image_size, stem: four)
        inputs = Inputs(in_channels=4)
        assert build_backbone("mine", image_size=64, inputs=inputs).inputs == inputs
        with pytest.raises(UserError, match=r"registered as 'mine' takes 4 channels .* in_channels is 3"):
            build_backbone("mine", image_size=64)
    finally:
        REGISTERED.clear()
        REGISTERED.update(before)

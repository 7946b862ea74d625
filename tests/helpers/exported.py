"""Backbones that were trained as far as their numbers go, and lines that are run as they were printed."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hapicl.data.images.inputs import RGB, Inputs
from hapicl.models.backbones.base import Backbone
from hapicl.models.backbones.build import build_backbone
from hapicl.models.backbones.resnet import ResNetBackbone
from hapicl.models.write_weights import write_safetensors


def trained(arch: str, size: int, stem: str = "auto", *, norm: bool = True, inputs: Inputs = RGB) -> Backbone:
    """A backbone whose every number differs from a fresh one's, BatchNorm's statistics too."""
    torch.manual_seed(0)
    backbone = build_backbone(arch, image_size=size, stem=stem, inputs=inputs)
    if not norm:
        backbone.drop_final_norm()
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.02, 0.02)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    backbone.eval()
    with torch.inference_mode():  # two dead networks would give the same features whatever their weights
        maps = backbone(torch.randn(2, inputs.in_channels, size, size))[backbone.last]
    assert maps.std() > 0.01
    assert maps.std() < 100
    return backbone


def written(backbone: Backbone, folder: Path, arch: str, size: int) -> str:
    """Its weights as `hapicl pretrain` leaves them."""
    path = folder / "backbone.safetensors"
    about = {"arch": arch, "stem": backbone.stem, "image_size": str(size), "method": ""}
    write_safetensors(backbone.export_state(), path, about | backbone.inputs.as_texts())
    return str(path)


def run(lines: str) -> dict[str, Any]:
    """What the names of the lines are after they ran."""
    space: dict[str, Any] = {}
    exec(lines, space)
    return space


def last_map(network: nn.Module, images: Tensor) -> Tensor:
    """Of a network that gives a list or an ordered dictionary of maps."""
    with torch.inference_mode():
        maps = network.eval()(images)
    return list(maps.values() if isinstance(maps, dict) else maps)[-1]


def usual(backbone: Backbone) -> Backbone:
    """A ResNet-18's weights in the network with the usual stem, as other libraries' decoders take it."""
    other = ResNetBackbone("resnet18", "imagenet").eval()
    other.load_state_dict(backbone.state_dict())
    return other

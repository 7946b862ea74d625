"""What `hapicl export` prints: the lines that load what was written, to be run as they stand.

Each library's lines stand for themselves, under the library's name; the tests run them in the real libraries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from ...models.backbones.base import Backbone
from ...models.backbones.resnet import ResNetBackbone, restore_lines
from ...models.backbones.timm_maps import TimmBackbone
from ...models.backbones.vit import ViTBackbone
from .timm_form import timm_arguments

Snippets = dict[str, str]  # the library's name -> lines of Python

# strides of the maps for which segmentation-models-pytorch has decoders
_PYRAMIDS = ([2, 4, 8, 16, 32], [4, 8, 16, 32])
_SMP_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def usage(target: str, backbone: Backbone, path: Path, arch: str) -> Snippets:
    """Lines of Python that load a file, by the library they are for.

    Args:
        target: library it was written for.
        backbone: what it holds.
        path: the file.
        arch: the backbone's name.
    """
    found = _LINES[target](backbone, path, arch)
    return {library: "\n".join(lines) for library, lines in found.items()}


def hub_usage(backbone: Backbone, place: str) -> Snippets:
    """Lines of Python that load a folder in the hub's form, by library.

    Args:
        backbone: what it holds.
        place: as timm takes it: `local-dir:FOLDER` or `hf-hub:NAME`.
    """
    source, name = json.dumps(place, ensure_ascii=False), json.dumps(f"tu-{place}", ensure_ascii=False)
    vectors = [
        "import timm",
        *_import_torch(backbone),
        f"model = timm.create_model({source}, pretrained=True)  # timm 1.0.16 or newer; a vector per image",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        *_strides(backbone),
    ]
    maps = [
        "import timm",
        *_import_torch(backbone),
        f"model = timm.create_model({source}, pretrained=True, features_only=True)  # maps",
        *_before_norm(backbone),
        *_strides(backbone),
    ]
    found = {"timm": vectors, "timm, feature maps": maps}
    if decoder := _decoder(backbone):
        found["segmentation-models-pytorch"] = [
            "import segmentation_models_pytorch as smp",
            *_usual_strides(backbone),
            f"model = smp.{decoder}({name}, encoder_weights=True, {_smp_channels(backbone)}classes=21)",
        ]
    channels = "" if backbone.in_channels == 3 else f", num_channels={backbone.in_channels}"
    found["transformers"] = [
        "import timm",
        *_import_torch(backbone),
        "from transformers import TimmBackbone",
        f"backbone = TimmBackbone.from_pretrained({source}{channels})",
        *_kept_statistics(backbone, source),
        *_strides(backbone, of="backbone._backbone"),
    ]
    return {library: "\n".join(lines) for library, lines in found.items()}


def as_text(snippets: Snippets) -> str:
    """All lines, under the libraries' names where there are several."""
    if len(snippets) == 1:
        return next(iter(snippets.values()))
    return "\n\n".join(f"# {library}\n{lines}" for library, lines in snippets.items())


def _torchvision(backbone: Backbone, path: Path, arch: str) -> dict[str, list[str]]:
    model = [
        "import torch, torchvision",
        f"model = torchvision.models.{arch}()",
        "# only fc stays new",
        f"model.load_state_dict(torch.load({_text(path)}, weights_only=True), strict=False)",
        *_strides(backbone),
    ]
    detector = [
        "import torch",
        "from torchvision.models.detection import FasterRCNN",
        "from torchvision.models.detection.backbone_utils import resnet_fpn_backbone",
        "# every layer learns, BatchNorm too; torchvision's default freezes it",
        "backbone = resnet_fpn_backbone(",
        f'    backbone_name="{arch}", weights=None, trainable_layers=5, norm_layer=torch.nn.BatchNorm2d',
        ")",
        f"backbone.body.load_state_dict(torch.load({_text(path)}, weights_only=True))",
        *_strides(backbone, of="backbone.body"),
        "model = FasterRCNN(backbone, num_classes=91)",
    ]
    return {"torchvision": model, "torchvision's detectors": detector}


def _timm(backbone: Backbone, path: Path, arch: str) -> dict[str, list[str]]:
    arguments = ", ".join(f"{name}={value}" for name, value in timm_arguments(backbone).items())
    if isinstance(backbone, TimmBackbone):
        lines = [
            "import timm",
            "from safetensors.torch import load_file",
            f'model = timm.create_model("{backbone.name}", {arguments})',
            "# only what follows the last map stays new",
            f"model.load_state_dict(load_file({_text(path)}), strict=False)",
        ]
        return {"timm": lines}
    create = f'model = timm.create_model("{arch}", {arguments}, checkpoint_path={_text(path)})'
    found = {"timm": ["import timm", *_import_torch(backbone), create, *_strides(backbone)]}
    if isinstance(backbone, ResNetBackbone):
        own = arch in _SMP_RESNETS  # else timm's network inside smp's encoder
        encoder = arch if own else f"tu-{arch}"
        found["segmentation-models-pytorch"] = [
            "import segmentation_models_pytorch as smp",
            "from safetensors.torch import load_file",
            *_usual_strides(backbone),
            f'model = smp.Unet("{encoder}", encoder_weights=None, {_smp_channels(backbone)}classes=21)',
            f"model.encoder{'' if own else '.model'}.load_state_dict(load_file({_text(path)}))",
        ]
    return found


def _safetensors(backbone: Backbone, path: Path, arch: str) -> dict[str, list[str]]:
    lines = [
        "from safetensors.torch import load_file",
        f"state = load_file({_text(path)})",
        f"# or: hapicl evaluate knn {path} --train DIR --test DIR",
    ]
    return {"safetensors": lines}


def _detectron2(backbone: Backbone, path: Path, arch: str) -> dict[str, list[str]]:
    depth = re.search(r"resnet(\d+)", arch)
    assert depth is not None
    small = ["cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64"] if depth[1] in ("18", "34") else []
    wide = ["cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 128"] if arch.startswith("wide") else []
    lines = [
        "from detectron2.config import get_cfg",
        "cfg = get_cfg()",
        f"cfg.MODEL.WEIGHTS = {_text(path)}",
        'cfg.INPUT.FORMAT = "RGB"',
        "cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]",
        "cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]",
        "cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False",
        'cfg.MODEL.RESNETS.NORM = "SyncBN"  # or "BN" on one GPU',
        "cfg.MODEL.BACKBONE.FREEZE_AT = 0",
        f"cfg.MODEL.RESNETS.DEPTH = {depth[1]}",
        *small,
        *wide,
        *([] if backbone.stem == "imagenet" else [f"# {_trained_with(backbone)}, which detectron2 has not"]),
    ]
    return {"detectron2": lines}


def _smp_channels(backbone: Backbone) -> str:
    """The argument of segmentation-models-pytorch for other channels than RGB's three."""
    return "" if backbone.in_channels == 3 else f"in_channels={backbone.in_channels}, "


def _import_torch(backbone: Backbone) -> list[str]:
    """For the lines of `_strides`."""
    return ["import torch"] if restore_lines(backbone.stem) else []


def _strides(backbone: Backbone, of: str = "model") -> list[str]:
    """What gives another library's ResNet, called `of`, the strides of training, where those were others."""
    lines = [line.replace("model.", f"{of}.", 1) for line in restore_lines(backbone.stem)]
    return lines and [f"# {_trained_with(backbone)}; the weights fit the usual one too:", *lines]


def _usual_strides(backbone: Backbone) -> list[str]:
    """That a decoder takes a ResNet with its usual stem only."""
    if not restore_lines(backbone.stem):
        return []
    return [f"# {_trained_with(backbone)}; the decoders fit the usual one, and so do the weights"]


def _before_norm(backbone: Backbone) -> list[str]:
    """That timm gives a ViT's maps before the last norm."""
    has_norm = isinstance(backbone, ViTBackbone) and "norm.weight" in backbone.export_state()
    return ["# of the last blocks, before the norm that follows them"] if has_norm else []


def _decoder(backbone: Backbone) -> str | None:
    """The decoder of segmentation-models-pytorch that takes the backbone's maps; None if there is none."""
    if isinstance(backbone, ViTBackbone):
        return "DPT"
    if isinstance(backbone, TimmBackbone):
        strides = [info["reduction"] for info in backbone.trunk.feature_info]
        return "Unet" if strides in _PYRAMIDS else None
    return "Unet"


def _kept_statistics(backbone: Backbone, source: str) -> list[str]:
    """What keeps BatchNorm's statistics, which transformers sets to 0 and 1 after timm has loaded them."""
    if not any(name.endswith("running_mean") for name in backbone.export_state()):
        return []
    return [
        "# transformers 5 has reset the running statistics of BatchNorm; timm's own network has them",
        f"backbone._backbone = timm.create_model({source}, pretrained=True, features_only=True,",
        "                                       out_indices=tuple(backbone.out_indices))",
    ]


def _text(path: Path) -> str:
    """A path as Python and JSON write it."""
    return json.dumps(str(path), ensure_ascii=False)


def _trained_with(backbone: Backbone) -> str:
    return f"trained with the stem {backbone.stem!r}, of a smaller stride"


_LINES: dict[str, Callable[[Backbone, Path, str], dict[str, list[str]]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "safetensors": _safetensors,
    "detectron2": _detectron2,
}

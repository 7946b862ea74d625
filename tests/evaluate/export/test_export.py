import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from limits import largest_file
from safetensors.torch import load_file

from hapicl import cli
from hapicl.common.errors import UserError
from hapicl.evaluate.export.detectron import detectron_name, read_detectron
from hapicl.evaluate.export.export import SUFFIX, export_backbone
from hapicl.models.backbones.build import build_backbone
from hapicl.models.weights import load_backbone
from hapicl.models.write_weights import write_safetensors


@pytest.fixture
def resnet50(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth", model


def detectron2_keys(depths: tuple[int, ...], convolutions: int, shortcut_first: bool) -> set[str]:
    """Keys of detectron2's ResNet, written from its modules: BasicStem, then res2 .. res5 of blocks.

    detectron2/modeling/backbone/resnet.py: every Conv2d holds its norm; the first block of a stage has a
    `shortcut` where the channels change; its frozen and trained BatchNorm have these four tensors.
    """
    norm = [f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    keys = {f"stem.conv1.{part}" for part in ("weight", *norm)}
    for stage, depth in enumerate(depths, start=2):
        for block in range(depth):
            parts = [f"conv{number}" for number in range(1, convolutions + 1)]
            if block == 0 and (stage > 2 or shortcut_first):
                parts.append("shortcut")
            keys |= {f"res{stage}.{block}.{part}.{name}" for part in parts for name in ("weight", *norm)}
    return keys


@pytest.mark.parametrize("target", list(SUFFIX))
def test_an_export_onto_a_full_disk_is_one_line_and_leaves_nothing(target, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), weights)
    out = tmp_path / "full" / f"weights{SUFFIX[target]}"
    words = ["export", str(weights), "--to", target, "--arch", "resnet18", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["hapicl", *words])
    with largest_file(1 << 20), pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: cannot write {out}: File too large; free some space or choose a folder you may write to"
    )
    assert list(out.parent.iterdir()) == []


def test_the_detectron2_pickle_has_its_key_list(
    resnet50: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    path, model = resnet50
    written, matched = export_backbone(str(path), "detectron2", tmp_path / "d2")
    assert written.path.name == "d2.pkl"
    assert "265 of 265" in matched
    arrays = read_detectron(written.path)
    assert set(arrays) == detectron2_keys((3, 4, 6, 3), 3, shortcut_first=True)
    state = model.state_dict()
    for theirs, ours in (
        ("stem.conv1.weight", "conv1.weight"),
        ("stem.conv1.norm.running_var", "bn1.running_var"),
        ("res2.0.shortcut.weight", "layer1.0.downsample.0.weight"),
        ("res2.0.shortcut.norm.bias", "layer1.0.downsample.1.bias"),
        ("res5.2.conv3.norm.running_mean", "layer4.2.bn3.running_mean"),
    ):
        assert np.array_equal(arrays[theirs], state[ours].numpy())
    for needed in ("INPUT.FORMAT", "STRIDE_IN_1X1 = False", "PIXEL_STD"):
        assert needed in written.usage


def test_a_basic_block_resnet_has_its_key_list(tmp_path: Path) -> None:
    names = build_backbone("resnet18", image_size=224).export_state()
    found = {detectron_name(name) for name in names if not name.endswith("num_batches_tracked")}
    assert found == detectron2_keys((2, 2, 2, 2), 2, shortcut_first=False)


def test_torchvision_round_trip(resnet50: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path, model = resnet50
    written, _ = export_backbone(str(path), "torchvision", tmp_path / "tv")
    fresh = torchvision.models.resnet50(weights=None).eval()
    missing = fresh.load_state_dict(torch.load(written.path, weights_only=True), strict=False)
    assert set(missing.missing_keys) == {"fc.weight", "fc.bias"}
    model.fc = fresh.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), fresh(images))


@pytest.mark.parametrize("stem", ["imagenet", "no_pool"])
def test_timm_round_trip_of_our_backbone(stem: str, tmp_path: Path) -> None:
    backbone = build_backbone("resnet18", image_size=64, stem=stem)
    settings = {"arch": "resnet18", "stem": stem}
    module = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    torch.save({"format": 1, "module": module, "settings": settings}, tmp_path / "last.pt")
    written, _ = export_backbone(str(tmp_path / "last.pt"), "timm", tmp_path / "t")
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(written.path))
    assert torch.equal(
        model.state_dict()["layer4.1.conv2.weight"], backbone.export_state()["layer4.1.conv2.weight"]
    )
    assert ("maxpool" in written.usage) == (stem == "no_pool")


def test_timm_round_trip_of_a_vit(tmp_path: Path) -> None:
    backbone = build_backbone("vit_tiny_patch16_224", image_size=64, stem="patch8").eval()
    module = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    settings = {"arch": "vit_tiny_patch16_224", "stem": "patch8", "image_size": 64}
    torch.save({"format": 1, "module": module, "settings": settings}, tmp_path / "last.pt")
    written, _ = export_backbone(str(tmp_path / "last.pt"), "timm", tmp_path / "t")
    state = load_file(written.path)
    assert state["pos_embed"].shape[1] == 65  # the grid it was trained with, 8 x 8, and the class token
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, patch_size=8).eval()
    model.load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        theirs = model.forward_features(images)[:, 1:].mean(1)
        torch.testing.assert_close(theirs, backbone(images)["patches"].mean((2, 3)), rtol=1e-4, atol=1e-5)


class _Config:
    """detectron2's configuration as far as assignments go; pip does not offer the library."""

    def __getattr__(self, name: str) -> "_Config":
        self.__dict__[name] = part = _Config()
        return part


@pytest.mark.parametrize(
    ("arch", "size", "stem", "norm", "targets"),
    [
        ("resnet18", 64, "imagenet", True, ("torchvision", "timm", "detectron2", "safetensors")),
        ("resnet18", 32, "stride1", True, ("torchvision", "timm", "detectron2", "safetensors")),
        ("wide_resnet50_2", 64, "no_pool", True, ("detectron2",)),
        ("vit_tiny_patch16_224", 224, "auto", True, ("timm", "safetensors")),
        ("vit_tiny_patch16_224", 64, "patch8", True, ("timm", "safetensors")),
        ("vit_tiny_patch16_224", 96, "patch16_heads12", False, ("timm", "safetensors")),
    ],
)
def test_every_printed_line_runs_and_gives_the_same_features(
    arch: str, size: int, stem: str, norm: bool, targets: tuple[str, ...], tmp_path: Path, monkeypatch: Any
) -> None:
    """The line for timm named neither size, patch, heads nor the missing last norm, and did not load.

    What the lines for further libraries do is in test_clients.py.
    """
    torch.manual_seed(0)
    backbone = build_backbone(arch, image_size=size, stem=stem)
    if not norm:
        backbone.drop_final_norm()
    about = {"arch": arch, "stem": backbone.stem, "image_size": str(size)}
    write_safetensors(backbone.export_state(), tmp_path / "backbone.safetensors", about)
    config = types.ModuleType("detectron2.config")
    config.get_cfg = _Config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "detectron2", types.ModuleType("detectron2"))
    monkeypatch.setitem(sys.modules, "detectron2.config", config)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = backbone.eval()(images)[backbone.last].mean((2, 3))
    for target in targets:
        written, _ = export_backbone(str(tmp_path / "backbone.safetensors"), target, tmp_path / target)
        space: dict[str, Any] = {}
        exec(written.snippets[target], space)
        if target == "detectron2":
            assert (18 if arch == "resnet18" else 50) == space["cfg"].MODEL.RESNETS.DEPTH
            assert Path(space["cfg"].MODEL.WEIGHTS).is_file()
        elif target == "safetensors":
            assert space["state"].keys() == backbone.export_state().keys()
            again, _ = load_backbone(str(written.path))
            with torch.inference_mode():
                torch.testing.assert_close(again(images)[again.last].mean((2, 3)), expected)
        else:
            model = space["model"].eval()
            model.fc = torch.nn.Identity()
            with torch.inference_mode():
                features = model.forward_features(images) if "vit" in arch else model(images)
                found = features[:, 1:].mean(1) if "vit" in arch else features
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_safetensors_round_trip(resnet50: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    written, _ = export_backbone(str(resnet50[0]), "safetensors", tmp_path / "own")
    _, info = load_backbone(str(written.path))  # the file itself says which backbone it is
    assert (info.arch, info.stem, info.fraction) == ("resnet50", "imagenet", 1.0)


def test_mistakes_are_named(resnet50: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of torchvision, timm"):
        export_backbone(str(resnet50[0]), "caffe", tmp_path / "x")
    with pytest.raises(UserError, match="trained weights"):
        export_backbone("random", "timm", tmp_path / "x")
    vit = timm.create_model("vit_tiny_patch16_224")
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match="no network of the form"):
        export_backbone(str(tmp_path / "vit.pth"), "detectron2", tmp_path / "x", arch="vit_tiny_patch16_224")

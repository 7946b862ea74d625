"""Names of hubs, run folders and other toolkits' files, with made-up weights in the caches: no network."""

import hashlib
import json
import socket
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from hapicl.common.errors import UserError
from hapicl.models.backbones.build import build_backbone
from hapicl.models.weights import describe_weights, fill_backbone, load_backbone


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches of torch and of the Hugging Face hub, and no way out; gives their folder."""

    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def keep_torchvision(folder: Path, entry: torchvision.models.ResNet18_Weights) -> torch.nn.Module:
    """Put a made-up ResNet-18 where torch keeps the download of an entry."""
    model = torchvision.models.resnet18(weights=None)
    checkpoints = folder / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(model.state_dict(), checkpoints / Path(urlparse(entry.url).path).name)
    return model


def keep_timm(folder: Path, name: str) -> torch.nn.Module:
    """Put made-up weights of a timm model where the hub's library keeps the download."""
    model = timm.create_model(name, pretrained=False)
    repository, revision = model.pretrained_cfg["hf_hub_id"], "0" * 40
    place = folder / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    (place / "snapshots" / revision).mkdir(parents=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, place / "snapshots" / revision / "model.safetensors")
    return model


@pytest.mark.parametrize("name", ["resnet18", "resnet18.IMAGENET1K_V1"])
def test_torchvisions_name_reads_the_file_in_torchs_cache(no_network: Path, name: str) -> None:
    model = keep_torchvision(no_network, torchvision.models.ResNet18_Weights.DEFAULT)
    backbone, info = load_backbone(f"torchvision:{name}")
    assert torch.equal(backbone.export_state()["conv1.weight"], model.conv1.weight)
    (file,) = (no_network / "torch" / "hub" / "checkpoints").iterdir()
    assert (info.arch, info.fraction) == ("resnet18", 1.0)
    assert info.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_timms_name_reads_the_file_in_the_hubs_cache(no_network: Path) -> None:
    model = keep_timm(no_network, "resnet18.a1_in1k")
    backbone, info = load_backbone("timm:resnet18.a1_in1k", image_size=64)
    assert torch.equal(backbone.export_state()["layer1.0.conv1.weight"], model.layer1[0].conv1.weight)
    assert (info.arch, info.stem, info.fraction) == ("resnet18", "no_pool", 1.0)
    again = load_backbone("timm:resnet18.a1_in1k", image_size=64)[1]
    assert info.sha256 == again.sha256
    keep = no_network / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / ("0" * 40)
    other = timm.create_model("resnet18", pretrained=False)
    save_file({key: value.contiguous() for key, value in other.state_dict().items()}, next(keep.iterdir()))
    assert load_backbone("timm:resnet18.a1_in1k", image_size=64)[1].sha256 != info.sha256


def test_timms_vision_transformer_comes_with_its_positions_resampled(no_network: Path) -> None:
    keep_timm(no_network, "test_vit.r160_in1k")
    backbone, info = load_backbone("timm:test_vit.r160_in1k", image_size=64)
    assert (info.arch, info.fraction) == ("test_vit", 1.0)
    assert backbone.export_state()["pos_embed"].shape[1] == 1 + 4 * 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "torchvision:resnet18",
            r"cannot download https://download\.pytorch\.org/.*fetch it where there",
        ),
        ("timm:resnet18.a1_in1k", r"cannot get timm:resnet18\.a1_in1k from timm .*without a network"),
        ("torchvision:resnet81", r"serve resnet18, .*did you mean torchvision:resnet18"),
        ("torchvision:resnet18.V9", r"torchvision's resnet18 has IMAGENET1K_V1"),
        ("timm:resnet81", r"timm has no model of this name.*did you mean timm:resnet18"),
        ("timm:resnet18.nope", r"cannot get .*Invalid pretrained tag"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(no_network: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_backbone(spec)
    assert "\n" not in str(refused.value)


def test_without_a_network_timms_hub_was_asked_five_times_in_half_a_minute(
    no_network: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"cannot get timm:resnet18\.a1_in1k from timm .*without a network"):
        load_backbone("timm:resnet18.a1_in1k")
    assert "Retrying" not in caplog.text
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False  # for what else the process asks
    keep_timm(no_network, "resnet18.a1_in1k")
    assert load_backbone("timm:resnet18.a1_in1k")[1].fraction == 1.0


def test_a_run_folder_gives_its_export_or_its_checkpoint(tmp_path: Path) -> None:
    trained = build_backbone("resnet18", image_size=64, stem="no_pool")
    settings = {"arch": "resnet18", "stem": "no_pool", "image_size": 64, "method": "simclr"}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))
    state = {f"backbone.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"format": 1, "module": state, "config": {"settings": settings}}, tmp_path / "last.pt")
    for spec in (tmp_path, tmp_path / "last.pt"):
        backbone, info = load_backbone(str(spec))
        assert torch.equal(backbone.export_state()["conv1.weight"], trained.export_state()["conv1.weight"])
        assert (info.stem, info.method) == ("no_pool", "simclr")
    moved = {name: value + 1 for name, value in trained.export_state().items()}
    save_file(moved, tmp_path / "backbone.safetensors")
    backbone, info = load_backbone(str(tmp_path))
    assert torch.equal(backbone.export_state()["conv1.weight"], moved["conv1.weight"])
    assert describe_weights(str(tmp_path)) == settings


@pytest.mark.parametrize(
    ("prefix", "toolkit"),
    [
        ("backbone.", "MMSelfSup, lightly"),
        ("module.encoder.", "DDP wrappers"),
        ("base_encoder.", "MoCo v3"),
        ("online_encoder.encoder.", "solo-like"),
        ("teacher.backbone.", "DINO"),
        ("_feature_blocks.", "VISSL"),
    ],
)
def test_other_toolkits_keep_the_network_under_a_prefix(tmp_path: Path, prefix: str, toolkit: str) -> None:
    model = torchvision.models.resnet18(weights=None)
    state = {prefix + name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    state |= {"head.0.weight": torch.zeros(3, 3), "queue": torch.zeros(2, 2)}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "other.pth")
    backbone, info = load_backbone(str(tmp_path / "other.pth"))
    assert (info.prefix, info.arch, info.fraction) == (prefix, "resnet18", 1.0), toolkit
    assert torch.equal(backbone.export_state()["layer4.1.bn2.bias"], model.layer4[1].bn2.bias)


def test_layers_that_go_by_number_are_named_as_torchvisions(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(weights=None)
    encoder = torch.nn.Sequential(*list(model.children())[:-1])  # as lightly's tutorials build theirs
    state = {f"backbone.{name}": value for name, value in encoder.state_dict().items()}
    state |= {"projection_head.layers.0.weight": torch.zeros(4, 4)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightly.ckpt")
    backbone, info = load_backbone(str(tmp_path / "lightly.ckpt"))
    assert (info.arch, info.fraction, info.prefix) == ("resnet18", 1.0, "backbone.")
    for name, value in backbone.export_state().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_of_teacher_and_student_the_teacher_is_read(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(weights=None)
    student = {f"module.backbone.{name}": value + 1 for name, value in model.state_dict().items()}
    teacher = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 1}, tmp_path / "dino.pth")
    backbone, _ = load_backbone(str(tmp_path / "dino.pth"))
    assert torch.equal(backbone.export_state()["conv1.weight"], model.conv1.weight)


def test_what_a_file_lacks_is_named(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    del state["layer3.0.bn1.bias"], state["conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    backbone = build_backbone("resnet18", image_size=64)
    info = fill_backbone(backbone, str(tmp_path / "part.pth"), "resnet18")
    assert backbone.has_weights
    assert info.record()["missing"] == ["conv1.weight", "layer3.0.bn1.bias"]
    assert "initialised anew: conv1.weight, layer3.0.bn1.bias" in info.line()


def test_a_patch_embedding_of_another_size_was_left_random(tmp_path: Path) -> None:
    model = timm.create_model("test_vit")  # patches of 16 pixels
    kernel = model.patch_embed.proj.weight
    smooth = torch.nn.functional.interpolate(torch.randn(len(kernel), 3, 4, 4), 16, mode="bicubic")
    kernel.data.copy_(smooth)  # as trained kernels are
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    backbone = build_backbone("test_vit", image_size=64, stem="patch8").eval()
    info = fill_backbone(backbone, str(tmp_path / "vit.pth"), "test_vit")
    assert info.fraction == 1.0
    large = torch.nn.functional.interpolate(torch.randn(1, 3, 16, 16), 128, mode="bicubic")
    small = torch.nn.functional.interpolate(large, 64, mode="bicubic", antialias=True)
    with torch.no_grad():
        expected = model.patch_embed.proj(large)
        error = backbone.trunk.patch_embed.proj(small) - expected
    assert error.norm() < 0.1 * expected.norm()

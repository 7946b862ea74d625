import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from hapicl.common.errors import UserError
from hapicl.models.backbones.build import build_backbone
from hapicl.models.weights import describe_weights, load_backbone


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    torch.manual_seed(5)
    return torchvision.models.resnet18(weights=None)


def same(backbone: torch.nn.Module, model: torch.nn.Module) -> None:
    expected = model.state_dict()
    for name, value in backbone.export_state().items():  # type: ignore[operator]
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_a_torchvision_file_loads_whole_and_its_arch_is_found(
    tmp_path: Path, resnet: torch.nn.Module
) -> None:
    torch.save(resnet.state_dict(), tmp_path / "r.pth")
    backbone, info = load_backbone(str(tmp_path / "r.pth"))
    same(backbone, resnet)
    assert (info.arch, info.kind, info.fraction) == ("resnet18", "file", 1.0)
    assert "100.0%" in info.line()
    _, supervised = load_backbone(f"supervised:{tmp_path / 'r.pth'}")
    assert supervised.kind == "supervised"


@pytest.mark.parametrize("arch", ["resnet34", "resnet50"])
def test_the_architecture_is_read_off_the_shapes(tmp_path: Path, arch: str) -> None:
    torch.save(torchvision.models.get_model(arch).state_dict(), tmp_path / "w.pth")
    assert load_backbone(str(tmp_path / "w.pth"))[1].arch == arch


def test_a_moco_checkpoint_gives_the_query_encoder(tmp_path: Path, resnet: torch.nn.Module) -> None:
    state = resnet.state_dict()
    both = {f"module.encoder_q.{name}": value for name, value in state.items()}
    both |= {f"module.encoder_k.{name}": value + 1 for name, value in state.items()}
    torch.save({"epoch": 3, "state_dict": both}, tmp_path / "moco.pth.tar")
    backbone, info = load_backbone(str(tmp_path / "moco.pth.tar"))
    same(backbone, resnet)
    assert info.prefix == "module.encoder_q."


def test_our_checkpoint_gives_the_backbone_not_its_momentum_copy(tmp_path: Path) -> None:
    trained = build_backbone("resnet18", image_size=64, stem="no_pool")
    state = {f"backbone.{name}": value for name, value in trained.state_dict().items()}
    copy = {f"momentum.backbone.{name}": value + 1 for name, value in trained.state_dict().items()}
    settings = {"arch": "resnet18", "stem": "no_pool", "image_size": 64, "method": "hapicl_m"}
    torch.save({"format": 1, "module": {**copy, **state}, "settings": settings}, tmp_path / "last.pt")
    backbone, info = load_backbone(str(tmp_path / "last.pt"), image_size=224)
    assert torch.equal(backbone.export_state()["conv1.weight"], trained.export_state()["conv1.weight"])
    assert (info.stem, info.method, backbone.stride) == ("no_pool", "hapicl_m", 16)


def test_safetensors_and_the_config_beside_it(tmp_path: Path) -> None:
    trained = build_backbone("resnet18", image_size=64, stem="stride1")
    save_file(trained.export_state(), tmp_path / "backbone.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"arch": "resnet18", "stem": "stride1"}))
    _, info = load_backbone(str(tmp_path / "backbone.safetensors"))
    assert (info.arch, info.stem, info.fraction) == ("resnet18", "stride1", 1.0)


def test_a_timm_vit_loads_and_its_positions_are_resampled(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224")
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    backbone, info = load_backbone(str(tmp_path / "vit.pth"), arch="vit_tiny_patch16_224", image_size=64)
    assert info.fraction == 1.0
    assert backbone(torch.zeros(1, 3, 64, 64))["patches"].shape[2:] == (4, 4)


def test_a_mis_keyed_file_is_refused(tmp_path: Path, resnet: torch.nn.Module) -> None:
    renamed = {name.replace("layer", "block"): value for name, value in resnet.state_dict().items()}
    torch.save(renamed, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth: only 5 of 100 keys of resnet18 matched \(5\.0%"):
        load_backbone(str(tmp_path / "bad.pth"), arch="resnet18")


def test_the_file_of_another_architecture_is_refused(tmp_path: Path, resnet: torch.nn.Module) -> None:
    torch.save(resnet.state_dict(), tmp_path / "r.pth")
    with pytest.raises(UserError, match="of resnet50 matched"):
        load_backbone(str(tmp_path / "r.pth"), arch="resnet50")


def test_just_under_95_per_cent_is_refused_and_above_passes(tmp_path: Path, resnet: torch.nn.Module) -> None:
    state = resnet.state_dict()
    weights = [name for name in state if not name.startswith("fc") and "num_batches" not in name]
    for drop, passes in ((5, True), (6, False)):
        kept = {name: value for name, value in state.items() if name not in weights[10 : 10 + drop]}
        torch.save(kept, tmp_path / "part.pth")
        if passes:
            assert load_backbone(str(tmp_path / "part.pth"), arch="resnet18")[1].matched == 95
        else:
            with pytest.raises(UserError, match="94 of 100"):
                load_backbone(str(tmp_path / "part.pth"), arch="resnet18")


def test_old_files_without_batch_counters_load(tmp_path: Path, resnet: torch.nn.Module) -> None:
    old = {name: value for name, value in resnet.state_dict().items() if "num_batches" not in name}
    torch.save(old, tmp_path / "old.pth")
    assert load_backbone(str(tmp_path / "old.pth"), arch="resnet18")[1].fraction == 1.0


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, resnet: torch.nn.Module) -> None:
    state = {name: value.clone() for name, value in resnet.state_dict().items()}
    state["conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"conv1\.weight .*not finite"):
        load_backbone(str(tmp_path / "nan.pth"))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weight file"):
        load_backbone(str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"is a folder without backbone\.safetensors or last\.pt"):
        load_backbone(str(tmp_path))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as plain tensors") as refused:
        load_backbone(str(tmp_path / "text.pth"))
    assert "weights_only" not in str(refused.value)  # torch's own advice: read it unsafely
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="no readable safetensors"):
        load_backbone(str(tmp_path / "text.safetensors"))
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="no named tensors"):
        load_backbone(str(tmp_path / "empty.pth"))


def test_random_depends_on_the_seed_alone() -> None:
    first, info = load_backbone("random", arch="resnet18", seed=1)
    torch.manual_seed(99)
    again, _ = load_backbone("random", arch="resnet18", seed=1)
    other, other_info = load_backbone("random", arch="resnet18", seed=2)
    name = "layer1.0.conv1.weight"
    assert torch.equal(first.export_state()[name], again.export_state()[name])
    assert not torch.equal(first.export_state()[name], other.export_state()[name])
    assert info.sha256 != other_info.sha256


def test_a_stem_called_auto_was_that_of_the_evaluations_size(tmp_path: Path) -> None:
    """A checkpoint of 64 px, measured at 224, got the stem of 224 and other features."""
    backbone = build_backbone("resnet18", image_size=64)
    module = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    settings = {"arch": "resnet18", "stem": "auto", "image_size": 64}
    torch.save({"format": 1, "module": module, "settings": settings}, tmp_path / "last.pt")
    for size in (64, 224):
        assert load_backbone(str(tmp_path / "last.pt"), image_size=size)[1].stem == "no_pool"
    assert describe_weights(str(tmp_path / "last.pt"))["stem"] == "no_pool"

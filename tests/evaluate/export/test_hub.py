"""Folders in timm's form: they load in timm, transformers and smp, and their card says what files say."""

import json
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from click.testing import CliRunner
from exported import last_map, run, trained, usual, written
from small_run import draw_images, write_box_masks

from hapicl.cli import command_line
from hapicl.common.errors import UserError
from hapicl.data.images.inputs import Inputs
from hapicl.evaluate.export.hub import export_hub
from hapicl.evaluate.result import Outcome, Run, make_result, write_result
from hapicl.models.features import evaluation_vector
from hapicl.models.weights import load_backbone
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.train import pretrain


@pytest.mark.parametrize(
    ("arch", "size", "stem", "norm"),
    [
        ("resnet18", 64, "imagenet", True),
        ("resnet18", 32, "stride1", True),
        ("vit_tiny_patch16_224", 64, "patch8_heads12", True),
        ("vit_tiny_patch16_224", 96, "patch16", False),
    ],
)
def test_timm_makes_the_network_again(arch: str, size: int, stem: str, norm: bool, tmp_path: Path) -> None:
    backbone = trained(arch, size, stem, norm=norm)
    done, _ = export_hub(written(backbone, tmp_path, arch, size), tmp_path / "hub")
    images = torch.randn(2, 3, size, size)
    model = run(done.snippets["timm"])["model"].eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(images), evaluation_vector(backbone, images), rtol=1e-4, atol=1e-5)
    again, info = load_backbone(str(done.path))  # our own commands take the folder too
    assert (info.arch, info.stem, info.fraction) == (arch, backbone.stem, 1.0)
    assert all(
        torch.equal(value, again.export_state()[name]) for name, value in backbone.export_state().items()
    )
    found = timm.data.resolve_model_data_config(model)
    assert tuple(found["input_size"]) == (3, size, size)
    assert found["mean"] == pytest.approx((0.485, 0.456, 0.406))
    assert found["crop_pct"] == pytest.approx(224 / 256, abs=0.02)  # sides are whole pixels
    maps = last_map(run(done.snippets["timm, feature maps"])["model"], images)
    with torch.inference_mode():
        if "vit" in arch:
            maps = backbone.trunk.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(maps, backbone(images)[backbone.last], rtol=1e-4, atol=1e-5)
    card = (done.path / "README.md").read_text()
    assert ("smaller stride" in card) == (stem == "stride1")
    assert "Not measured." in card


def test_other_channels_are_told_to_every_library(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install hapicl[clients]")
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.25, 0.25)
    inputs = Inputs(in_channels=4, bands=(4, 3, 2, 8), mean=mean, std=std)
    backbone = trained("resnet18", 64, "imagenet", inputs=inputs)
    done, _ = export_hub(written(backbone, tmp_path, "resnet18", 64), tmp_path / "hub")
    images = torch.randn(2, 4, 64, 64)
    model = run(done.snippets["timm"])["model"].eval()
    network = run(done.snippets["transformers"])["backbone"].eval()
    with torch.inference_mode():
        expected = backbone(images)["layer4"]
        torch.testing.assert_close(model(images), expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(images).feature_maps[-1], expected, rtol=1e-4, atol=1e-5)
    found = timm.data.resolve_model_data_config(model)
    assert tuple(found["input_size"]) == (4, 64, 64)
    assert tuple(found["mean"]) == mean
    card = (done.path / "README.md").read_text()
    assert "4 channels (bands 4, 3, 2, 8 of TIFF files) in 0 .. 1, mean 0.1, 0.2, 0.3, 0.4" in card
    assert "in_channels=4" in done.snippets["segmentation-models-pytorch"]


def test_a_network_of_timms_comes_with_its_untrained_end(tmp_path: Path) -> None:
    backbone = trained("timm:test_convnext", 64)
    done, _ = export_hub(written(backbone, tmp_path, "timm:test_convnext", 64), tmp_path / "hub")
    images = torch.randn(2, 3, 64, 64)
    maps = last_map(run(done.snippets["timm, feature maps"])["model"], images)
    with torch.inference_mode():
        torch.testing.assert_close(maps, backbone(images)["layer4"], rtol=1e-4, atol=1e-5)
    assert "**Not trained:** `head.norm.weight`" in (done.path / "README.md").read_text()


def test_transformers_keeps_the_running_statistics(tmp_path: Path) -> None:
    """`TimmBackbone.from_pretrained` alone sets BatchNorm's statistics to 0 and 1 after loading."""
    pytest.importorskip("transformers", reason="pip install hapicl[clients]")
    backbone = trained("resnet18", 64, "no_pool")
    done, _ = export_hub(written(backbone, tmp_path, "resnet18", 64), tmp_path / "hub")
    network = run(done.snippets["transformers"])["backbone"].eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = network(images).feature_maps[-1]
        torch.testing.assert_close(found, backbone(images)["layer4"], rtol=1e-4, atol=1e-5)
    vit = trained("vit_tiny_patch16_224", 64, "patch16", norm=False)
    (tmp_path / "v").mkdir()
    done, _ = export_hub(written(vit, tmp_path / "v", "vit_tiny_patch16_224", 64), tmp_path / "v/hub")
    network = run(done.snippets["transformers"])["backbone"].eval()
    with torch.inference_mode():
        found = network(images).feature_maps[-1]
        torch.testing.assert_close(found, vit(images)["patches"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "stem"),
    [("resnet18", "no_pool"), ("timm:test_convnext", "auto"), ("vit_tiny_patch16_224", "patch16")],
)
def test_segmentation_models_pytorch_takes_the_folder(arch: str, stem: str, tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="pip install hapicl[clients]")
    backbone = trained(arch, 64, stem, norm="vit" not in arch)
    done, _ = export_hub(written(backbone, tmp_path, arch, 64), tmp_path / "hub")
    if arch == "timm:test_convnext" and "segmentation-models-pytorch" not in done.snippets:
        assert [info["reduction"] for info in backbone.trunk.feature_info] != [4, 8, 16, 32]
        return
    model = run(done.snippets["segmentation-models-pytorch"])["model"].eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert model(images).shape == (1, 21, 64, 64)
        features = model.encoder(images)
    found = features[0][-1] if "vit" in arch else features[-1]
    expected = usual(backbone) if arch == "resnet18" else backbone
    torch.testing.assert_close(
        found,
        last_map(expected, images) if "vit" not in arch else expected(images)["patches"],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a method with masks."""
    root = tmp_path_factory.mktemp("secret place")
    images = draw_images(root / "images")
    masks = write_box_masks(images, root / "masks.h5")
    options: dict[str, Any] = {"method": "hapicl_s", "masks": masks, "out": str(root / "run"), "steps": 2}
    options |= {"arch": "resnet18", "image_size": 32, "batch_size": 4, "workers": 0, "device": "cpu"}
    pretrain(resolve(options)[0], show=False)
    return root / "run"


def measured(weights: Path, digest: str, out: Path) -> None:
    """A result of these weights as `hapicl evaluate` writes it."""
    about = {"kind": "file", "arch": "resnet18", "stem": "stride1", "spec": str(weights), "sha256": digest}
    runs = [
        Run(seed=seed, seconds=1.0, weights=about, outcome=Outcome(metrics={"top1": 0.41 + seed / 50}))
        for seed in (0, 1)
    ]
    result = make_result(
        task="knn",
        protocol="knn-dino",
        headline="top1",
        parameters={"image_size": 32},
        data={"test": {"root": "/secret place/flowers", "images": 1234}},
        runs=runs,
    )
    write_result(result, out)


def test_the_card_says_what_the_files_say_and_no_more(finished_run: Path, tmp_path: Path) -> None:
    _, info = load_backbone(str(finished_run))
    measured(finished_run, info.sha256, finished_run.parent / "results/knn.json")
    measured(finished_run, "0" * 64, finished_run.parent / "results/of_others.json")
    export_hub(str(finished_run), tmp_path / "hub", license="cc-by-4.0")
    card = (tmp_path / "hub/README.md").read_text()
    config = json.loads((finished_run / "config.json").read_text())
    for words in (
        'license: "cc-by-4.0"',
        "pretrained without labels by `hapicl_s`",
        "10.1007/s00371-023-03217-x",
        "| images | 12, without labels |",
        config["data"]["paths_sha256"],
        config["data"]["masks_digest"],
        '"name": "box 4"',
        "| knn-dino | flowers, 1,234 images | 32 | top1 | 42.0 ± 1.4 (2) |",
        "| optimiser steps | 2 |",
        "local-dir:FOLDER",
        '"base_lr"',
    ):
        assert words in card, words
    assert len(re.findall("knn-dino", card)) == 1
    assert "secret place" not in card  # where things lay is nobody's business
    assert str(tmp_path) not in card


def test_a_folder_is_whole_or_not_there_and_bare_weights_get_no_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = trained("resnet18", 64, "imagenet")
    weights = written(backbone, tmp_path, "resnet18", 64)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hapicl.evaluate.export.hub.check_hub", stopped)
        with pytest.raises(KeyboardInterrupt):
            export_hub(weights, tmp_path / "hub")
    assert list((tmp_path / "hub").iterdir()) == []
    export_hub(weights, tmp_path / "hub")
    with pytest.raises(UserError, match="holds files already"):
        export_hub(weights, tmp_path / "hub")
    answer = CliRunner().invoke(command_line, ["export", weights, "--to", "timm", "--license", "mit"])
    assert "--license is of --to hub" in answer.output
    card = (tmp_path / "hub/README.md").read_text()
    assert "Not measured." in card
    assert card.count("not recorded") >= 4
    assert "license" not in card.split("---")[1]
    measured(Path(weights), "0" * 64, tmp_path / "other.json")
    with pytest.raises(UserError, match="is a result of other weights"):
        export_hub(weights, tmp_path / "again", results=[tmp_path / "other.json"])
    assert not (tmp_path / "again").exists()


class Hub:
    """In the place of huggingface_hub's HfApi: remembers what it was asked; tests never reach a network."""

    calls: ClassVar[list[tuple[Any, ...]]]
    error: ClassVar[Exception | None] = None

    def whoami(self) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        return {"name": "me"}

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append(("create", name, options))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, *, folder_path: Path, repo_id: str, **_: Any) -> None:
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_a_folder_goes_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="pip install hapicl[clients]")
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    weights = written(trained("resnet18", 64, "imagenet"), tmp_path, "resnet18", 64)
    words = ["export", weights, "--to", "hub", "--out", str(tmp_path / "hub"), "--push", "me/backbone"]
    answer = CliRunner().invoke(command_line, words)
    assert answer.exit_code == 0, answer.output + str(answer.exception)
    assert "sent to https://huggingface.co/me/backbone" in answer.output
    (create, upload) = Hub.calls
    assert create[:2] == ("create", "me/backbone")
    assert create[2]["private"] is True
    assert upload == ("upload", "me/backbone", ["README.md", "config.json", "model.safetensors"])
    card = (tmp_path / "hub/README.md").read_text()
    assert "# me/backbone" in card
    assert '"hf-hub:me/backbone"' in card


def test_a_push_without_a_login_is_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="pip install hapicl[clients]")
    from huggingface_hub.errors import LocalTokenNotFoundError

    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "error", LocalTokenNotFoundError("no token"))
    words = ["export", str(tmp_path / "weights.pth"), "--to", "hub", "--push", "me/backbone"]
    answer = CliRunner().invoke(command_line, words)
    assert isinstance(answer.exception, UserError)
    assert str(answer.exception) == "--push needs a login at the hub: `hf auth login`, or HF_TOKEN=..."
    monkeypatch.setattr(Hub, "error", OSError("no route to host"))
    answer = CliRunner().invoke(command_line, words)
    assert "refuses the login (no route to host)" in str(answer.exception)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    answer = CliRunner().invoke(command_line, words)
    assert "needs huggingface_hub: pip install hapicl[clients]" in str(answer.exception)

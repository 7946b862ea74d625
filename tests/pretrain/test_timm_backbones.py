"""timm's networks through whole runs: trained, resumed, continued from, refused where they do not fit."""

import pytest
import safetensors.torch
import torch
from small_run import draw_images, write_box_masks

from hapicl.common.errors import UserError
from hapicl.engine.checkpoint import load_checkpoint
from hapicl.models.weights import load_backbone
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.methods.registry import METHODS, method_rows
from hapicl.pretrain.train import pretrain

SMALL = {"image_size": 32, "batch_size": 4, "workers": 0, "device": "cpu", "steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("timm")
    draw_images(root / "images")
    write_box_masks(root / "images", root / "masks.h5")
    return root


def settings(folder, method, arch, **changes):
    options = {"method": method, "arch": arch, "masks": str(folder / "masks.h5"), **SMALL}
    return resolve(options | changes)[0]


@pytest.mark.parametrize(
    ("method", "arch"),
    [
        ("hapicl_s", "timm:test_convnext"),
        ("hapicl_m", "timm:test_resnet"),
        ("moco_v3", "timm:test_efficientnet"),
        ("densecl", "timm:test_resnet"),
    ],
)
def test_a_run_on_a_network_of_timms_resumes_exactly_and_is_continued(folder, tmp_path, method, arch):
    config = {"hidden": 32, "dim": 16} if method == "moco_v3" else {}

    def asked(name, **changes):
        return settings(folder, method, arch, out=str(tmp_path / name), config=config, **changes)

    pretrain(asked("whole"), show=False)
    pretrain(asked("parts", stop_after=2), show=False)
    pretrain(asked("parts", resume="auto"), show=False)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt")["module"] for name in ("whole", "parts"))
    assert [name for name, value in whole.items() if not torch.equal(value, parts[name])] == []
    backbone, info = load_backbone(str(tmp_path / "whole"))
    assert (info.arch, info.stem, info.fraction) == (arch, "stride8", 1.0)
    options = {"masks": str(folder / "masks.h5"), "method": "simclr", "weights": str(tmp_path / "whole")}
    pretrain(resolve(options | SMALL | {"out": str(tmp_path / "more"), "steps": 1})[0], show=False)
    more = safetensors.torch.load_file(tmp_path / "more" / "backbone.safetensors")
    assert more.keys() == backbone.export_state().keys()


def test_methods_of_tokens_and_of_maps_say_what_they_need(folder):
    with pytest.raises(UserError, match="mae masks patches and so needs a Vision Transformer"):
        settings(folder, "mae", "timm:test_convnext")
    with pytest.raises(UserError, match=r"hapicl_s needs a map of 4 x 4 cells, and .*stride16\) gives 2 x 2"):
        settings(folder, "hapicl_s", "timm:test_convnext", stem="stride16")
    with pytest.raises(UserError, match=r"densecl needs a map of 4 x 4 cells, and .*no_pool\) gives 2 x 2"):
        settings(folder, "densecl", "resnet18", stem="no_pool")
    assert settings(folder, "simclr", "timm:test_convnext", stem="stride16").stem == "stride16"


def test_the_table_of_methods_names_fitting_backbones():
    rows = {name: fit for name, _, fit, _ in method_rows()}
    assert rows.keys() == METHODS.keys()
    assert (rows["simclr"], rows["mae"]) == ("any", "plain ViT")
    assert rows["hapicl_m"] == rows["densecl"] == "4 x 4 cells"


def test_a_run_folder_by_default_has_no_colon(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = pretrain(settings(folder, "simclr", "timm:test_convnext", steps=1), show=False)
    assert str(done.folder) == "runs/simclr_timm_test_convnext"

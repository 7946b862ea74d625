"""Graphs for onnxruntime: the same numbers as torch, for any number of images."""

import sys
from pathlib import Path

import pytest
import torch
from exported import run, trained, written

from hapicl.common.errors import UserError
from hapicl.evaluate.export.onnx_graph import NEEDED, TOLERANCE, export_onnx
from hapicl.models.features import evaluation_vector

for library in NEEDED:
    pytest.importorskip(library, reason="pip install hapicl[clients]")


def test_a_resnets_maps_are_those_of_torch_for_images_of_any_size(tmp_path: Path) -> None:
    backbone = trained("resnet18", 32, "stride1")
    weights = written(backbone, tmp_path, "resnet18", 32)
    done, matched = export_onnx(weights, tmp_path / "maps", gives="maps")
    assert done.path.name == "maps.onnx"
    assert "(100.0%)" in matched
    found = run(done.usage)
    shapes = [output.shape[1:] for output in found["outputs"]]
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    images = torch.randn(5, 3, 40, 72)
    with torch.inference_mode():
        expected = backbone(images)["layer4"]
    theirs = torch.from_numpy(found["session"].run(["layer4"], {"images": images.numpy()})[0])
    torch.testing.assert_close(theirs, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_vits_vector_is_that_of_torch_for_any_number_of_images(tmp_path: Path) -> None:
    """Its graph was fixed to the two images that it was exported with."""
    backbone = trained("vit_tiny_patch16_224", 64, "patch16", norm=False)
    done, _ = export_onnx(written(backbone, tmp_path, "vit_tiny_patch16_224", 64), tmp_path / "v.onnx")
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        expected = evaluation_vector(backbone, images)
    theirs = torch.from_numpy(run(done.usage)["session"].run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(theirs, expected, rtol=TOLERANCE, atol=TOLERANCE)
    with pytest.raises(UserError, match="exists already"):
        export_onnx(written(backbone, tmp_path, "vit_tiny_patch16_224", 64), tmp_path / "v.onnx")


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnx needs onnxruntime: pip install hapicl\[clients\]"):
        export_onnx("anything", tmp_path / "x")

"""Every line that `hapicl export` prints, run in the library it is for.

Libraries of the extra `clients` that are not installed skip their tests; detectron2, which pip does not
offer, is in test_export.py.
"""

from pathlib import Path

import pytest
import torch
from exported import last_map, run, trained, usual, written

from hapicl.evaluate.export.export import export_backbone


@pytest.mark.parametrize(("size", "stem"), [(64, "imagenet"), (32, "stride1")])
def test_torchvisions_detectors_start_from_the_weights(size: int, stem: str, tmp_path: Path) -> None:
    backbone = trained("resnet18", size, stem)
    done, _ = export_backbone(written(backbone, tmp_path, "resnet18", size), "torchvision", tmp_path / "tv")
    model = run(done.snippets["torchvision's detectors"])["model"]
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(last_map(model.backbone.body, images), last_map(backbone, images))
    assert all(value.requires_grad for value in model.backbone.parameters())
    model.transform.min_size, model.transform.max_size = (32,), 32
    with torch.inference_mode():
        assert set(model.eval()([images[0]])[0]) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize(("own", "stem"), [(True, "no_pool"), (False, "imagenet")])
def test_segmentation_models_pytorch_takes_a_resnet(
    own: bool, stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own encoder, or by timm's network inside one, as for wide_resnet50_2 (here in its place)."""
    pytest.importorskip("segmentation_models_pytorch", reason="pip install hapicl[clients]")
    if not own:
        monkeypatch.setattr("hapicl.evaluate.export.usage._SMP_RESNETS", ())
    backbone = trained("resnet18", 64, stem)
    done, _ = export_backbone(written(backbone, tmp_path, "resnet18", 64), "timm", tmp_path / "t")
    lines = done.snippets["segmentation-models-pytorch"]
    model = run(lines)["model"].eval()
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(last_map(model.encoder, images), last_map(usual(backbone), images))
    assert ("the decoders fit the usual one" in lines) == (stem == "no_pool")
    with torch.inference_mode():
        assert model(images).shape == (1, 21, 32, 32)

"""timm's networks under the evaluations and the export: what takes them, and what says why not."""

import pytest
import safetensors.torch
import torch

from hapicl.common.errors import UserError
from hapicl.evaluate.batches import TaskBatch
from hapicl.evaluate.detection.models import DetectionTask, build_detector
from hapicl.evaluate.detection.protocols import DetectorShape
from hapicl.evaluate.export.export import export_backbone
from hapicl.evaluate.segmentation.models import FcnSegmenter
from hapicl.models.backbones.build import build_backbone
from hapicl.models.features import evaluation_vector
from hapicl.models.write_weights import write_safetensors


@pytest.mark.parametrize("arch", ["timm:test_convnext", "timm:test_resnet", "timm:test_vit4"])
def test_every_network_gives_its_vector(arch: str) -> None:
    backbone = build_backbone(arch, image_size=64).eval()
    vectors = evaluation_vector(backbone, torch.randn(2, 3, 64, 64))
    assert vectors.shape == (2, backbone.channels[backbone.last])


@pytest.mark.parametrize(("arch", "size"), [("timm:test_convnext", 64), ("timm:test_efficientnet", 128)])
@pytest.mark.parametrize("target", ["timm", "safetensors"])
def test_exports_load_into_timm_and_the_printed_lines_run(tmp_path, arch, size, target) -> None:  # type: ignore[no-untyped-def]
    backbone = build_backbone(arch, image_size=size)
    about = {"arch": arch, "stem": backbone.stem, "image_size": str(size)}
    write_safetensors(backbone.export_state(), tmp_path / "w.safetensors", about)
    out = tmp_path / f"{target}.safetensors"
    done, line = export_backbone(str(tmp_path / "w.safetensors"), target, out)
    assert "(100.0%)" in line
    assert done.keys == len(backbone.export_state())
    if target == "timm":
        found: dict = {}
        exec(done.snippets["timm"], found)
        state = found["model"].state_dict()
        for name, value in safetensors.torch.load_file(out).items():
            assert torch.equal(state[name], value)


def test_other_libraries_have_no_place_for_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    backbone = build_backbone("timm:test_convnext", image_size=64)
    about = {"arch": "timm:test_convnext", "stem": backbone.stem}
    write_safetensors(backbone.export_state(), tmp_path / "w.safetensors", about)
    with pytest.raises(UserError, match="torchvision has no network of the form of timm:test_convnext"):
        export_backbone(str(tmp_path / "w.safetensors"), "torchvision", tmp_path / "out.pth")


def shape(**changes: object) -> DetectorShape:
    sides = {"short_sides": (96,), "long_side": 160, "anchors": (16, 32, 64, 128, 256)}
    sides |= {"head": "2fc", "channels": 32, "hidden": 64, "regions": 16}
    return DetectorShape(**(sides | changes))


def test_a_detector_with_a_pyramid_learns_on_a_network_of_timms() -> None:
    backbone = build_backbone("timm:test_resnet", image_size=128)
    task = DetectionTask(build_detector(backbone, shape(), classes=2, masks=False)).train()
    targets = [{"boxes": torch.tensor([[8.0, 8, 60, 60]]), "labels": torch.tensor([1])}]
    output = task(TaskBatch(values=([torch.zeros(3, 96, 120, dtype=torch.uint8)], targets), number=0, size=1))
    output.loss.backward()
    gradient = backbone.trunk.conv1[0].weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_a_dilated_fcn_learns_on_a_network_of_timms() -> None:
    backbone = build_backbone("timm:test_convnext", image_size=128)
    network = FcnSegmenter(backbone, classes=3, head="densecl", output_stride=8, auxiliary=0.4).train()
    assert network.maps.stride == 8
    images = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    output = network(TaskBatch(values=(images, torch.randint(0, 3, (2, 64, 96))), number=0, size=2))
    output.loss.backward()
    assert network.maps.backbone.trunk.stem[0].weight.grad.abs().max() > 0


def test_what_a_network_cannot_give_is_said() -> None:
    swin = build_backbone("timm:swin_tiny_patch4_window7_224", image_size=128)
    vit = build_backbone("timm:test_vit4", image_size=64)
    mobile = build_backbone("timm:mobilenetv4_conv_small", image_size=128)
    for backbone in (swin, vit):
        with pytest.raises(UserError, match="maps layer1 to layer4 for images of any size"):
            build_detector(backbone, shape(), classes=2, masks=False)
        with pytest.raises(UserError, match="maps layer1 to layer4 for images of any size"):
            FcnSegmenter(backbone, classes=3, head="moco", output_stride=8, auxiliary=0)
    with pytest.raises(UserError, match="C4 detector needs a ResNet"):
        build_detector(mobile, shape(head="c4", anchors=(32, 64)), classes=2, masks=False)
    with pytest.raises(UserError, match="no form whose last map is of stride 8"):
        FcnSegmenter(mobile, classes=3, head="moco", output_stride=8, auxiliary=0)

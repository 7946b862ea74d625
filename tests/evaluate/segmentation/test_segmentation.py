from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional

from hapicl.common.errors import UserError
from hapicl.evaluate.finetune import RunStopped
from hapicl.evaluate.pictures import palette, segmentation_picture
from hapicl.evaluate.segmentation.data import (
    IGNORE,
    LabelledPixels,
    hold_out,
    paired_folders,
    voc_split,
    with_classes,
)
from hapicl.evaluate.segmentation.models import dilate, joined_maps, pixel_loss
from hapicl.evaluate.segmentation.protocols import PROTOCOLS
from hapicl.evaluate.segmentation.samples import SegmentationCrops
from hapicl.evaluate.segmentation.segment import evaluate_segmentation
from hapicl.evaluate.settings import Runtime, change, parameters
from hapicl.models.backbones.base import Backbone
from hapicl.models.backbones.build import build_backbone
from hapicl.models.backbones.resnet import ResNetBackbone
from hapicl.models.weights import load_backbone

PROBE = {"height": "64", "width": "64", "batch_size": "4"}
FCN = {"crop": "64", "batch_size": "4", "lr": "0.02", "scale": "[1.0, 1.25]"}


@pytest.fixture
def data(halves: Path) -> tuple[LabelledPixels, LabelledPixels]:
    both = paired_folders(halves / "images", halves / "labels", void=9)
    return with_classes(*hold_out(both, 0.25), None)


def network(stem: str = "stride1") -> Backbone:
    return load_backbone("random", arch="resnet18", stem=stem, image_size=64)[0]


def test_labels_are_read_with_void_and_classes_counted(data: tuple[LabelledPixels, LabelledPixels]) -> None:
    train, test = data
    assert (len(train), len(test), train.classes) == (9, 3, 2)
    image, labels = train.read(0)
    assert image.shape == (3, 64, 64)
    assert labels.unique().tolist() == [0, 1, IGNORE]
    assert (labels[56:] == IGNORE).all()


def test_label_mistakes_are_named(tmp_path: Path, halves: Path) -> None:
    unnamed = paired_folders(halves / "images", halves / "labels")  # void is not told
    with pytest.raises(UserError, match="label 9, but there are 2 classes"):
        with_classes(unnamed, unnamed, 2)
    with pytest.raises(UserError, match="no label folder"):
        paired_folders(halves / "images", tmp_path / "none")
    (tmp_path / "labels").mkdir()
    with pytest.raises(UserError, match=r"p0\.png has no label file"):
        paired_folders(halves / "images", tmp_path / "labels")
    for number in range(12):
        Image.new("RGB", (64, 64)).save(tmp_path / "labels" / f"p{number}.png")
    with pytest.raises(UserError, match="one class number per pixel"):
        paired_folders(halves / "images", tmp_path / "labels").read(0)
    for number in range(12):
        Image.new("L", (32, 64)).save(tmp_path / "labels" / f"p{number}.png")
    small = paired_folders(halves / "images", tmp_path / "labels")
    with pytest.raises(UserError, match="must have the size of their image"):
        small.read(0)
    with pytest.raises(UserError, match="must have the size of their image"):
        with_classes(small, small, None)
    for number in range(12):
        Image.new("L", (64, 64), 255).save(tmp_path / "labels" / f"p{number}.png")
    with pytest.raises(UserError, match="every pixel of the 12 label files is void"):
        with_classes(unnamed, paired_folders(halves / "images", tmp_path / "labels"), None)


def test_binary_masks_and_palettes(tmp_path: Path) -> None:
    for folder in ("i", "l"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 2)).save(tmp_path / "i/a.png")
    Image.fromarray(np.asarray([[0, 255, 255, 0]] * 2, np.uint8)).save(tmp_path / "l/a.png")
    binary = paired_folders(tmp_path / "i", tmp_path / "l", binary=True)
    assert binary.read_labels(0)[0].tolist() == [0, 1, 1, 0]
    coloured = Image.fromarray(np.asarray([[0, 1, 2, 255]] * 2, np.uint8), mode="L").convert("P")
    coloured.putdata([0, 1, 2, 255] * 2)
    coloured.save(tmp_path / "l/a.png")
    assert paired_folders(tmp_path / "i", tmp_path / "l").read_labels(0)[0].tolist() == [0, 1, 2, 255]


def test_voc_layout(tmp_path: Path, halves: Path) -> None:
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("p0\np1\n")
    for name in ("p0", "p1"):
        (tmp_path / f"JPEGImages/{name}.jpg").write_bytes((halves / f"images/{name}.png").read_bytes())
        (tmp_path / f"SegmentationClass/{name}.png").write_bytes((halves / f"labels/{name}.png").read_bytes())
    assert len(voc_split(tmp_path, "val")) == 2
    with pytest.raises(UserError, match=r"train\.txt"):
        voc_split(tmp_path, "train")
    (tmp_path / "JPEGImages/p1.jpg").unlink()
    with pytest.raises(UserError, match=r"names p1, but there is no .*p1\.jpg"):
        voc_split(tmp_path, "val")


def test_an_untrained_probe_scores_what_one_class_everywhere_scores(
    data: tuple[LabelledPixels, LabelledPixels],
) -> None:
    # equal odds: class 0 everywhere; IoU 1/2 and 0 over the rows that count
    protocol = change(PROTOCOLS["seg-probe"], {**PROBE, "steps": "0"})
    outcome = evaluate_segmentation(network(), *data, protocol, seed=0, runtime=Runtime())
    assert outcome.metrics == pytest.approx({"miou": 0.25, "pixel_accuracy": 0.5})
    assert outcome.confusion == [[3 * 56 * 32, 0], [3 * 56 * 32, 0]]


def test_the_probe_learns_halves_and_leaves_the_backbone(
    data: tuple[LabelledPixels, LabelledPixels], tmp_path: Path
) -> None:
    protocol = change(PROTOCOLS["seg-probe"], {**PROBE, "steps": "60"})
    backbone = network()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    outcome = evaluate_segmentation(backbone, *data, protocol, seed=0, runtime=Runtime(folder=tmp_path))
    assert outcome.metrics["miou"] > 0.9
    assert outcome.curves["loss"][0] == (1, pytest.approx(np.log(2), abs=1e-5))  # equal odds of two classes
    assert len(outcome.pictures) == 3
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_joined_maps_are_the_maps_enlarged_side_by_side() -> None:
    backbone, images = network(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = backbone(images)
        joined = joined_maps(backbone, images, ["layer4", "layer3"])
        larger = functional.interpolate(found["layer4"], scale_factor=2, mode="bilinear", align_corners=False)
        assert torch.equal(joined, torch.cat([larger, found["layer3"]], dim=1))
        assert torch.equal(joined_maps(backbone, images, ["layer2"]), found["layer2"])


@pytest.mark.parametrize("maps", ["layer1", "[layer3, layer4]"])
def test_the_probe_learns_halves_on_any_map(maps: str, data: tuple[LabelledPixels, LabelledPixels]) -> None:
    protocol = change(PROTOCOLS["seg-probe"], {**PROBE, "steps": "40", "map": maps})
    outcome = evaluate_segmentation(network(), *data, protocol, seed=0, runtime=Runtime())
    assert outcome.metrics["miou"] > 0.9


def test_a_block_of_a_vit_can_be_probed(data: tuple[LabelledPixels, LabelledPixels]) -> None:
    vit = load_backbone("random", arch="vit_tiny_patch16_224", stem="patch8", image_size=64)[0]
    protocol = change(PROTOCOLS["seg-probe"], {**PROBE, "steps": "40", "map": "[block1, patches]"})
    assert evaluate_segmentation(vit, *data, protocol, seed=0, runtime=Runtime()).metrics["miou"] > 0.8


def test_a_map_that_is_not_there_is_refused_before_any_image_is_read(
    data: tuple[LabelledPixels, LabelledPixels],
) -> None:
    protocol = change(PROTOCOLS["seg-probe"], {**PROBE, "map": "layer5"})
    gone = [replace(part, images=(Path("gone.png"),) * len(part)) for part in data]
    with pytest.raises(UserError, match=r"no map 'layer5'.*it has layer1, layer2, layer3, layer4$"):
        evaluate_segmentation(network(), *gone, protocol, seed=0, runtime=Runtime())
    for wrong, said in (("[]", "map"), ("[layer3, layer3]", "name each map once"), ("3", "map")):
        with pytest.raises(UserError, match=said):
            change(PROTOCOLS["seg-probe"], {"map": wrong})


def test_the_choice_of_a_map_left_results_of_the_last_map_what_they_were() -> None:
    protocol = PROTOCOLS["seg-probe"]
    assert "map" not in parameters(protocol)
    assert parameters(change(protocol, {"map": "layer3"}))["map"] == ["layer3"]
    assert change(change(protocol, {"map": "layer3"}), {"steps": "7"}).map == ("layer3",)


@pytest.mark.parametrize("name", ["seg-densecl-fcn8", "seg-moco-fcn16"])
def test_fine_tuned_fcns_learn_halves(name: str, data: tuple[LabelledPixels, LabelledPixels]) -> None:
    protocol = change(PROTOCOLS[name], {**FCN, "steps": "25"})
    outcome = evaluate_segmentation(network("imagenet"), *data, protocol, seed=0, runtime=Runtime())
    assert outcome.metrics["miou"] > 0.75


def test_fine_tuning_resumes_bit_for_bit_within_an_epoch(
    data: tuple[LabelledPixels, LabelledPixels], tmp_path: Path
) -> None:
    # four steps an epoch, stopped after the third
    tiny = {**FCN, "steps": "4", "crop": "32", "batch_size": "2"}
    protocol = change(PROTOCOLS["seg-densecl-fcn8"], tiny)

    def run(folder: str, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        runtime = Runtime(folder=tmp_path / folder, stop_after=stop_after)
        evaluate_segmentation(network("imagenet"), *data, protocol, seed=3, runtime=runtime)
        return dict(torch.load(tmp_path / folder / "seed3/last.pt", weights_only=True)["module"])

    whole = run("whole")
    with pytest.raises(RunStopped, match="after step 3 of 4"):
        run("parts", stop_after=3)
    torch.manual_seed(12345)  # whatever the process drew in between
    resumed = run("parts")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_run_folder_of_other_settings_is_refused(
    data: tuple[LabelledPixels, LabelledPixels], tmp_path: Path
) -> None:
    runtime = Runtime(folder=tmp_path)
    for steps, refused in (("2", False), ("3", True)):
        protocol = change(PROTOCOLS["seg-probe"], {**PROBE, "steps": steps})
        if refused:
            with pytest.raises(UserError, match=r"other settings \(protocol\)"):
                evaluate_segmentation(network(), *data, protocol, seed=0, runtime=runtime)
        else:
            evaluate_segmentation(network(), *data, protocol, seed=0, runtime=runtime)


def test_pixel_loss_ignores_void() -> None:
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 8, 8))
    labels[:, :3] = IGNORE
    enlarged = functional.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(enlarged, labels, ignore_index=IGNORE)
    torch.testing.assert_close(pixel_loss(logits, labels), expected)
    assert float(pixel_loss(logits, torch.full_like(labels, IGNORE))) == 0.0


def test_dilation_agrees_with_torchvision() -> None:
    ours = build_backbone("resnet50", image_size=224, stem="imagenet").eval()
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(ours.export_state(), strict=False)
    assert isinstance(ours, ResNetBackbone)
    assert dilate(ours, 8) == 8
    trunk = torch.nn.Sequential(*list(theirs.children())[:-2])
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images)["layer4"], trunk(images))


def test_basic_blocks_are_dilated_too() -> None:
    backbone = build_backbone("resnet18", image_size=224, stem="imagenet")
    assert isinstance(backbone, ResNetBackbone)
    assert dilate(backbone, 16) == 16
    assert backbone(torch.zeros(1, 3, 64, 64))["layer4"].shape[2:] == (4, 4)
    assert backbone.trunk.layer4[1].conv1.dilation == (2, 2)
    assert backbone.trunk.layer3[1].conv1.dilation == (1, 1)


def test_training_crops_keep_image_and_labels_together(data: tuple[LabelledPixels, LabelledPixels]) -> None:
    protocol = change(PROTOCOLS["seg-moco-fcn16"], {"crop": "48", "scale": "[0.5, 2.0]"})
    samples = SegmentationCrops(data[0], protocol)
    for draw in range(20):
        image, labels = samples.sample(draw % 9, np.random.default_rng(draw))
        assert image.shape == (3, 48, 48)
        assert labels.shape == (48, 48)
        bright = image.float().mean(0) > 130
        counted = labels != IGNORE
        assert (bright[counted] == (labels[counted] == 1)).float().mean() > 0.9


def test_pictures_show_input_truth_and_prediction() -> None:
    image = torch.zeros(3, 2, 5, dtype=torch.uint8)
    truth = torch.tensor([[0, 1, 1, 1, 255]] * 2)
    picture = segmentation_picture(image, truth, torch.ones(2, 5, dtype=torch.long), 2)
    assert picture.shape == (2, 3 * 5 + 8, 3)
    assert (picture[0, 9] == palette(2)[0]).all()
    assert (picture[0, 13] == 255).all()
    assert (picture[0, 18:] == palette(2)[1]).all()


def test_a_vit_can_be_probed_but_not_dilated(data: tuple[LabelledPixels, LabelledPixels]) -> None:
    vit = load_backbone("random", arch="vit_tiny_patch16_224", stem="patch8", image_size=64)[0]
    probe = change(PROTOCOLS["seg-probe"], {**PROBE, "steps": "40"})
    assert evaluate_segmentation(vit, *data, probe, seed=0, runtime=Runtime()).metrics["miou"] > 0.8
    fcn = change(PROTOCOLS["seg-moco-fcn16"], {**FCN, "steps": "1"})
    with pytest.raises(UserError, match="need a ResNet"):
        evaluate_segmentation(vit, *data, fcn, seed=0, runtime=Runtime())

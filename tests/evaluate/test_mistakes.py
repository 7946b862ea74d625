"""A user's mistakes end in one line that names the path and the next step, before anything is computed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hapicl.cli import command_line
from hapicl.common.errors import UserError
from hapicl.data.images.class_folders import class_folders, listed
from hapicl.evaluate.classification.knn import PROTOCOLS as KNN
from hapicl.evaluate.classification.semi import PROTOCOLS as SEMI
from hapicl.evaluate.classification.svm import PROTOCOLS as SVM
from hapicl.evaluate.detection.data import coco_objects, hold_out_objects, voc_objects
from hapicl.evaluate.detection.detect import PROTOCOLS as DETECTION
from hapicl.evaluate.finetune import settings_from
from hapicl.evaluate.protocols import Request, choose
from hapicl.evaluate.segmentation.segment import PROTOCOLS as SEGMENTATION
from hapicl.models.weights import load_backbone


@pytest.mark.parametrize(
    ("protocol", "change", "message"),
    [
        (KNN["knn-dino"], "k=0", "k must be above 0"),
        (KNN["knn-dino"], "temperature=-1", "temperature must be above 0"),
        (SEGMENTATION["seg-probe"], "steps=-1", "steps must be 0 or more"),
        (SEGMENTATION["seg-probe"], "lr=0", "lr must be above 0"),
        (SEGMENTATION["seg-probe"], "label_stride=300", "label_stride 300 is larger than the images"),
        (SEGMENTATION["seg-moco-fcn16"], "head=x", "setting head is 'x'; choose one of densecl, moco"),
        (SEGMENTATION["seg-moco-fcn16"], "scale=[2, 1]", "scale must be"),
        (SEGMENTATION["seg-moco-fcn16"], "scale=[1]", "setting scale takes 2 values"),
        (SEGMENTATION["seg-moco-fcn16"], "output_stride=7", "output_stride must be one of"),
        (SEMI["semi-finetune"], "head_lr_scale=0", "head_lr_scale must be above 0"),
        (SEMI["logistic-1pct"], "inverse_regularisations=[]", "must hold numbers above 0"),
        (SVM["svm-voc07"], "costs=[-1]", r"costs must hold numbers above 0, not \[-1.0\]"),
        (DETECTION["detect-small"], "shape=3", "setting shape takes a mapping"),
        (DETECTION["detect-small"], "shape.head=x", "setting shape.head is 'x'; choose one of c4"),
        (DETECTION["detect-small"], "shape.anchors=[16]", "anchors must hold 5 sides"),
        (DETECTION["detect-small"], "shape.regions=0", "regions must be above 0"),
        (DETECTION["detect-small"], "milestones=[2]", "milestones are shares"),
        (DETECTION["detect-small"], "headline=x", "setting headline is 'x'"),
        (DETECTION["detect-small"], "clip_norm=-1", "clip_norm must be above 0"),
        (DETECTION["detect-small"], "lr=[1", "--set lr=.* is not valid YAML"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(protocol: Any, change: str, message: str) -> None:
    name, _, value = change.partition("=")
    with pytest.raises(UserError, match=message):
        settings_from(protocol, {name: value})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"runs": 0}, "--runs 0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**64}, "--seed 18446744073709551616"),
        ({"seed": 2**64 - 1, "runs": 2}, "those of all runs"),
        ({"image_size": 100_000}, "--image-size 100000"),
    ],
)
def test_a_request_that_cannot_be_is_refused(asked: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Request(weights="random", protocol="knn-dino", **asked)  # type: ignore[arg-type]


def test_the_image_size_is_the_detectors_shorter_side_unless_set() -> None:
    request = Request(weights="random", protocol="detect-small", image_size=90)
    assert (choose(DETECTION, request).shape.short_sides, choose(DETECTION, request).shape.long_side) == (
        (90,),
        150,
    )
    changed = Request(
        weights="random", protocol="detect-small", image_size=90, changes={"shape.long_side": "99"}
    )
    assert choose(DETECTION, changed).shape.long_side == 99


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    command: Callable[..., str], colour_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    folders = ("--train", colour_folders / "train", "--test", colour_folders / "test")
    for out in (tmp_path / "file/r.json", tmp_path):
        said = command("evaluate", "knn", "no weights either", *folders, "--out", out)
        assert f"cannot write {out}" in said
    said = command("evaluate", "knn", "random", *folders, "--out", tmp_path / "r.html")
    assert "is the result's JSON" in said
    image = colour_folders / "test/red/red0.png"
    assert "cannot write" in command("show-matches", "no weights", image, "--out", tmp_path)
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "kept.pth")
    for out, message in ((tmp_path / "kept.pth", "exists already"), (tmp_path / "file/w", "cannot write")):
        assert message in command("export", "no weights", "--to", "torchvision", "--out", out)
    said = command("export", "no weights", "--to", "detectron2", "--out", tmp_path / "w.bin")
    assert "writes a .pkl file; give --out" in said


@pytest.fixture
def command() -> Callable[..., str]:
    """Runs a command that must fail without a traceback; gives what it says."""

    def run(*arguments: object) -> str:
        from click.testing import CliRunner

        answer = CliRunner().invoke(command_line, [str(argument) for argument in arguments])
        assert isinstance(answer.exception, UserError | SystemExit), answer.exception
        assert answer.exit_code != 0
        return answer.output + str(answer.exception)

    return run


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_weight_file_that_is_cut_or_altered_is_named(tmp_path: Path, name: str) -> None:
    import safetensors.torch
    import torchvision

    state = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    for content in (whole[:5000], whole[:-1000], b"", b"PK"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} (is damaged|cannot be read|is no readable)"):
            load_backbone(str(path))
    if name.endswith("pt"):  # torch's zip file has a checksum for each tensor, safetensors has none
        path.write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
        with pytest.raises(UserError, match=r"w\.pt is damaged \(checksum of .* does not match"):
            load_backbone(str(path))


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    """COCO JSON of one image with one object, changed."""
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "lacks the list 'images'"),
        (edited(lambda content: content.pop("categories")), "lacks the list 'categories'"),
        (edited(lambda content: content["categories"][0].pop("id")), r"categories\[0\] lacks 'id'"),
        (edited(lambda content: content.update(categories=["cat"])), r"categories\[0\] lacks 'id'"),
        (edited(lambda content: content["images"][0].pop("file_name")), r"images\[0\] lacks 'file_name'"),
        (edited(lambda content: content.update(annotations=["x"])), r"annotations\[0\] lacks 'image_id'"),
        (edited(lambda content: content["annotations"][0].update(bbox=[1, 2, 3])), "lacks 'bbox'"),
        (edited(lambda content: content["annotations"][0].update(bbox=None)), "lacks 'bbox'"),
        (edited(lambda content: content["annotations"][0].update(bbox=[float("nan")] * 4)), "lacks 'bbox'"),
        (edited(lambda content: content["annotations"][0].update(segmentation=[[1, 2]])), "'segmentation'"),
        (edited(lambda content: content["annotations"][0].update(image_id=7)), "annotation 1 names image 7"),
        (
            edited(lambda content: content["images"].append(content["images"][0])),
            "2 of its images have the id 1",
        ),
        (edited(lambda content: content["categories"].append({"id": 2, "name": "cat"})), "the name 'cat'"),
        (edited(lambda content: content["annotations"][0].update(bbox=[50, 1, 5, 5])), "outside its 8 x 8"),
        (
            edited(lambda c: c["annotations"][0].update(segmentation={"size": [9, 8], "counts": [72]})),
            "of another size than its 8 x 8",
        ),
        (
            edited(lambda c: c["annotations"][0].update(segmentation={"size": [8, 8], "counts": [1]})),
            "is broken, or",
        ),
        (edited(lambda c: c["annotations"][0].update(segmentation=[["a"] * 6])), "is broken, or"),
    ],
)
def test_broken_coco_annotations_are_named(tmp_path: Path, text: str, message: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json.*{message}"):
        coco_objects(tmp_path, tmp_path / "a.json")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 1, "nan", 5), "is not finite"),
        ((50, 50, 60, 60), "lies outside its 8 x 8 pixels"),
        ((5, 5, 2, 9), "is empty"),
    ],
)
def test_broken_voc_boxes_are_named(tmp_path: Path, box: tuple[object, ...], message: str) -> None:
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    entry = f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{entry}</annotation>")
    with pytest.raises(UserError, match=rf"a\.xml.*{message}"):
        voc_objects(tmp_path, "train")


def test_text_lists_that_are_no_text_are_named(tmp_path: Path, squares: Path, colour_folders: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    images = class_folders(colour_folders / "train")
    with pytest.raises(UserError, match=r"list\.txt is no text in UTF-8; give a text file"):
        listed(images, tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory; give a text file"):
        listed(images, tmp_path)
    data = voc_objects(squares, "train")
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="leaves one side empty; give a share between 0 and 1"):
            hold_out_objects(data, fraction)

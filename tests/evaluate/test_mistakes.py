"""A user's mistakes end in one line that names the path and the next step, before anything is computed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hapicl.cli import command_line
from hapicl.common.config import Settings, build
from hapicl.common.errors import UserError
from hapicl.data.images.class_folders import class_folders, listed
from hapicl.evaluate.classification.knn import PROTOCOLS as KNN
from hapicl.evaluate.classification.linear import PROTOCOLS as LINEAR
from hapicl.evaluate.classification.semi import PROTOCOLS as SEMI
from hapicl.evaluate.classification.svm import PROTOCOLS as SVM
from hapicl.evaluate.detection.data import coco_objects, hold_out_objects, voc_objects
from hapicl.evaluate.detection.protocols import PROTOCOLS as DETECTION
from hapicl.evaluate.segmentation.protocols import PROTOCOLS as SEGMENTATION
from hapicl.evaluate.settings import Request, change, choose
from hapicl.models.weights import load_backbone

PROTOCOLS: dict[str, Settings] = {**KNN, **LINEAR, **SEMI, **SVM, **SEGMENTATION, **DETECTION}


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("knn-dino", "k=0", "setting k: .*not 0"),
        ("knn-dino", "temperature=-1", "setting temperature: .*not -1"),
        ("knn-dino", "vector=patch", "setting vector: .*'mean'"),
        ("seg-probe", "steps=-1", "setting steps: .*not -1"),
        ("seg-probe", "lr=0", "setting lr: .*not 0"),
        ("seg-probe", "label_stride=300", "label_stride 300 is larger than the images"),
        ("seg-moco-fcn16", "head=x", "setting head: .*'densecl' or 'moco'"),
        ("seg-moco-fcn16", "scale=[2, 1]", "scale is"),
        ("seg-moco-fcn16", "scale=[1]", "setting scale"),
        ("seg-moco-fcn16", "output_stride=7", "setting output_stride: .*8, 16 or 32"),
        ("semi-finetune", "head_lr_scale=0", "setting head_lr_scale: .*not 0"),
        ("logistic-1pct", "inverse_regularisations=[]", "setting inverse_regularisations"),
        ("svm-voc07", "costs=[-1]", "setting costs.0: .*not -1"),
        ("detect-small", "shape=3", "setting shape: takes a mapping"),
        ("detect-small", "shape.head=x", "setting shape.head: .*'c4'"),
        ("detect-small", "shape.anchors=[16]", "anchors must hold 5 sides"),
        ("detect-small", "shape.regions=0", "setting shape.regions: .*not 0"),
        ("detect-small", "shape.region=0", "unknown setting 'shape.region'; did you mean shape.regions"),
        ("detect-small", "milestones=[2]", "setting milestones.0: .*not 2"),
        ("detect-small", "headline=x", "setting headline"),
        ("detect-small", "clip_norm=-1", "setting clip_norm: .*not -1"),
        ("detect-small", "lr=[1", "the value is no YAML of settings"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(name: str, changed: str, message: str) -> None:
    key, _, value = changed.partition("=")
    with pytest.raises(UserError, match=message):
        change(PROTOCOLS[name], {key: value})


ANYTHING = (
    "null",
    "true",
    "[]",
    "[null]",
    "[[1]]",
    "{}",
    "{a: 1}",
    "2026-01-01",
    "12:30:00",
    "1e20",
    "1.0e+20",
)
ANYTHING += (
    "-1.0e+20",
    "1" + 400 * "0",
    ".nan",
    "nan",
    ".inf",
    "-1",
    "0",
    "0.5",
    "text",
    "''",
    "'1'",
    "!!binary aGk=",
)


def fields(kind: type[Settings], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings of a class."""
    for name, entry in kind.model_fields.items():
        yield prefix + name
        if isinstance(entry.annotation, type) and issubclass(entry.annotation, Settings):
            yield from fields(entry.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_value_of_any_kind_ends_in_a_traceback(name: str) -> None:
    protocol, refused = PROTOCOLS[name], []
    for setting in fields(type(protocol)):
        for text in ANYTHING:
            try:
                change(protocol, {setting: text})
            except UserError as error:
                refused.append((setting, text, str(error)))
    assert len(refused) > 10
    for setting, text, said in refused:
        assert "\n" not in said, (setting, text)
        assert len(said) < 400, (setting, text)
        assert setting.split(".")[-1] in said, (setting, text, said)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"runs": 0}, "setting runs: .*not 0"),
        ({"seed": -1}, "setting seed: .*not -1"),
        ({"seed": 2**64}, "setting seed: .*not 18446744073709551616"),
        ({"seed": 2**64 - 1, "runs": 2}, "those of all 2 runs"),
        ({"image_size": 100_000}, "setting image_size: .*not 100000"),
    ],
)
def test_a_request_that_cannot_be_is_refused(asked: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Request, {"weights": "random", "protocol": "knn-dino", **asked})


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

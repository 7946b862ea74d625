"""Result files: their names, what is there already, and where random weights take their network from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from hapicl.cli import command_line
from hapicl.common.errors import UserError
from hapicl.evaluate.identity import data_identity, files_hash
from hapicl.evaluate.report.output import default_out
from hapicl.models.backbones.build import build_backbone


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go to ./results."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of small views, as a run folder holds them."""
    folder = tmp_path_factory.mktemp("runs") / "densecl_small"
    folder.mkdir()
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", image_size=64, stem="no_pool")
    state = {name: value.contiguous() for name, value in backbone.export_state().items()}
    about = {"arch": "resnet18", "stem": "no_pool", "image_size": "64", "method": "densecl"}
    save_file(state, folder / "backbone.safetensors", metadata=about)
    return folder / "backbone.safetensors"


def knn(weights: object, colours: Path, *more: object) -> Result:
    """Run the command with 3 neighbours at 32 px."""
    arguments = ["evaluate", "knn", weights, "--train", colours / "train", "--test", colours / "test"]
    arguments += ["--image-size", 32, "--set", "k=3", "--no-report", *more]
    return CliRunner().invoke(command_line, [str(argument) for argument in arguments])


def results() -> list[str]:
    """Names of the result files."""
    return sorted(path.name for path in Path("results").glob("*.json"))


def test_results_of_other_weights_sizes_settings_and_data_wrote_over_each_other(
    weights: Path, colour_folders: Path
) -> None:
    for more in (
        (),
        ("--set", "k=5"),
        ("--image-size", 48),
        ("--stem", "stride1"),
        ("--runs", 2),
        ("--seed", 1),
    ):
        said = knn(weights, colour_folders, *more)
        assert said.exit_code == 0, said.output + str(said.exception)
    for arch in ("resnet18", "resnet34"):
        assert knn("random", colour_folders, "--arch", arch).exit_code == 0
    swapped = ("--train", colour_folders / "test", "--test", colour_folders / "train")
    assert knn(weights, colour_folders, *swapped).exit_code == 0
    names = results()
    assert len(names) == 9
    assert sum(name.startswith("knn-knn-dino-densecl_small-") for name in names) == 7
    assert sum(name.startswith("knn-knn-dino-random-") for name in names) == 2


def test_linear_and_its_cached_form_have_names_of_their_own() -> None:
    one, other = (default_out("linear", f"linear-moco{form}", "w.pth", "0" * 64) for form in ("", "-cached"))
    assert one != other
    assert default_out("knn", "knn-dino", "a/[odd] name/last.pt", "1" * 64) == Path(
        "results/knn-knn-dino-_odd__name-11111111.json"
    )


def test_a_result_that_is_there_is_done(weights: Path, colour_folders: Path) -> None:
    assert "wrote results/" in knn(weights, colour_folders).output
    (path,) = Path("results").glob("*.json")
    before = path.stat().st_mtime_ns
    said = knn(weights, colour_folders)
    assert said.exit_code == 0
    assert "done before: results/" in said.output
    assert "top1 100.00 %" in said.output
    assert path.stat().st_mtime_ns == before
    assert "wrote results/" in knn(weights, colour_folders, "--force").output
    assert path.stat().st_mtime_ns != before


def test_a_result_of_other_content_is_never_written_over(weights: Path, colour_folders: Path) -> None:
    assert knn(weights, colour_folders, "--out", "mine.json").exit_code == 0
    kept = Path("mine.json").read_text()
    for more in (("--set", "k=5"), ("--set", "k=5", "--force")):
        said = knn(weights, colour_folders, "--out", "mine.json", *more)
        assert isinstance(said.exception, UserError)
        assert "is a result of other weights, data, parameters or seeds" in str(said.exception)
    Path("other.json").write_text("[1]")
    said = knn(weights, colour_folders, "--out", "other.json", "--force")
    assert isinstance(said.exception, UserError)
    assert Path("other.json").read_text() == "[1]"
    assert Path("mine.json").read_text() == kept


def test_the_same_files_elsewhere_are_the_same_data(tmp_path: Path) -> None:
    for place in ("one", "two", "three"):
        (tmp_path / place / "cat").mkdir(parents=True)
        (tmp_path / place / "cat/a.png").write_bytes(b"1234" if place != "three" else b"12345")
    hashes = [
        files_hash([tmp_path / place / "cat/a.png"], [0], tmp_path / place)
        for place in ("one", "two", "three")
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]  # the same names at another size
    assert hashes[0] != files_hash([tmp_path / "one/cat/a.png"], [1], tmp_path / "one")
    record: dict[str, Any] = {"train": {"root": "/a", "images": 1, "files": hashes[0]}}
    moved = {"train": {**record["train"], "root": "/b"}}
    assert data_identity(record) == data_identity(moved)
    unnamed = {"train": {"root": "/a", "images": 1}}
    assert data_identity(unnamed) == unnamed


def test_random_was_a_resnet50_that_nobody_had_asked_for(weights: Path, colour_folders: Path) -> None:
    said = knn("random", colour_folders)
    assert isinstance(said.exception, UserError)
    assert "--like WEIGHTS" in str(said.exception)
    assert "--arch" in str(said.exception)
    said = knn("random", colour_folders, "--like", weights)
    assert said.exit_code == 0, said.output + str(said.exception)
    (path,) = Path("results").glob("*.json")
    about = json.loads(path.read_text())["weights"]
    assert (about["kind"], about["arch"], about["stem"]) == ("random", "resnet18", "no_pool")
    assert "no weight file" in str(knn("random", colour_folders, "--like", "none.pth").exception)


def test_like_reads_the_network_off_the_tensors_of_a_foreign_file(
    colour_folders: Path, tmp_path: Path
) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    said = knn("random", colour_folders, "--like", "w.pth")
    assert said.exit_code == 0, said.output + str(said.exception)
    assert "resnet18" in said.output


def test_weights_of_another_toolkit_had_another_stem_than_ours_beside_them(
    weights: Path, colour_folders: Path, tmp_path: Path
) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    said = knn("w.pth", colour_folders)
    assert "the weights do not say their stem: stride1 fits the size of the input" in said.output
    said = knn("w.pth", colour_folders, "--like", weights)
    assert said.exit_code == 0, said.output + str(said.exception)
    assert "do not say" not in said.output
    stems = {json.loads(path.read_text())["weights"]["stem"] for path in Path("results").glob("*.json")}
    assert stems == {"stride1", "no_pool"}


def test_a_run_folder_is_measured_and_exported(weights: Path, colour_folders: Path) -> None:
    said = knn(weights.parent, colour_folders)
    assert said.exit_code == 0, said.output + str(said.exception)
    assert [name.rsplit("-", 1)[0] for name in results()] == ["knn-knn-dino-densecl_small"]
    said = CliRunner().invoke(command_line, ["export", str(weights.parent), "--to", "timm"])
    assert said.exit_code == 0, said.output + str(said.exception)
    assert (weights.parent / "backbone-timm.safetensors").is_file()


def test_weights_that_are_not_there_are_told_before_the_data_is_read(tmp_path: Path) -> None:
    said = knn("none.pth", tmp_path / "no data either")
    assert "no weight file none.pth" in str(said.exception)


def test_a_missing_list_is_told_before_the_training_images_are_read(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hapicl.evaluate.detection import data, run

    monkeypatch.setattr(data, "_voc_annotation", lambda path: pytest.fail("an annotation was read"))
    with pytest.raises(UserError, match=r"cannot read .*val\.txt"):
        run.detection_sets(run.DetectionData(voc=squares, splits=("train", "val")))


def test_help_states_the_name_that_results_get() -> None:
    said = CliRunner().invoke(command_line, ["evaluate", "knn", "--help"]).output
    assert "results/knn-PROTOCOL-WEIGHTS-HASH.json" in "".join(said.split())  # wrapped at hyphens


def test_a_segmentation_report_says_classes_colours_data_and_machine(
    weights: Path, halves: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("dark side\nbright side\n")
    arguments = ["evaluate", "segment", weights, "--images", halves / "images", "--labels", halves / "labels"]
    arguments += ["--void", 9, "--image-size", 32, "--set", "steps=2", "--set", "batch_size=4"]
    arguments += ["--class-names", "names.txt", "--out", "s.json"]
    said = CliRunner().invoke(command_line, [str(argument) for argument in arguments])
    assert said.exit_code == 0, said.output + str(said.exception)
    result = json.loads(Path("s.json").read_text())
    assert set(result["runs"][0]["per_class"]) == {"dark side", "bright side"}
    page = Path("s.html").read_text()
    for text in (
        str(halves / "images"),
        str(halves / "labels"),
        "void label",
        ">train</th>",
        "bright side",
        "cores",
        "duration",
    ):
        assert text in page, text
    assert "Colours of the classes" in page
    Path("names.txt").write_text("dark side\n")
    said = CliRunner().invoke(command_line, [str(argument) for argument in arguments])
    assert "give 2 to 255 names" in str(said.exception)
    said = CliRunner().invoke(command_line, [str(argument) for argument in [*arguments, "--classes", 3]])
    assert "names 1 classes, but --classes is 3" in str(said.exception)


def test_an_evaluation_in_a_pipe_says_how_far_it_is(
    weights: Path, colour_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hapicl.common.terminal import progress

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    said = knn(weights, colour_folders)
    assert "features of the training images: 24 of 24 (100 %)" in said.output
    assert "features of the test images: 12 of 12 (100 %)" in said.output

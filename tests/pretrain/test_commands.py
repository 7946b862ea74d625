"""What a user types: errors in one line with exit code 2, the dry run, the list of methods."""

import json
import re
import sys

import numpy as np
import pytest

from hapicl.cli import main
from hapicl.data.images.decode import image_size
from hapicl.data.images.folder import find_images
from hapicl.data.masks.writer import pack_mask, write_masks


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `hapicl ARGUMENTS`; gives the exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hapicl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def write(folder, out, *, leave_out=0):
    rows = []
    for path in find_images(folder)[leave_out:]:
        height, width = image_size(folder / path)
        mask = np.zeros((height, width), bool)
        mask[: height // 2] = True
        rows.append(pack_mask(path, mask, (height, width), confidence=0.9))
    write_masks(out, rows, {"image_root": str(folder), "recipe": {"name": "half"}})
    return str(out)


SMALL = ["--arch", "resnet18", "--image-size", "32", "--batch-size", "4", "--workers", "0", "--device", "cpu"]


def test_the_dry_run_prints_settings_size_and_memory(command, tmp_path, flat_folder):
    masks = write(flat_folder, tmp_path / "masks.h5")
    code, out, err = command("pretrain", "--masks", masks, *SMALL, "--steps", 3, "--dry-run")
    assert code == 0
    content, rest = json.JSONDecoder().raw_decode(out)
    assert content["settings"]["method"] == "hapicl_m"
    assert content["total_steps"] == 3
    lines = out[rest:].strip().splitlines()
    assert re.match(r"parameters: \d+\.\d+ M in all, 11\.18 M in the backbone", lines[0])
    assert lines[1] == "views per sample: 2 of 32, 32 px; views per step: 8"
    assert lines[2] == "masks: grid 4"
    assert re.match(r"estimated memory per process: 0\.\d+ GiB", lines[3])
    assert err == "settings from recipe hapicl_m_small\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "hapicl_m needs masks: give --masks FILE"),
        (["--method", "simclr"], "no images: give --images DIR"),
        (["--images", "IMAGES"], "hapicl_m needs masks"),
        (["--masks", "nowhere.h5"], r"nowhere\.h5"),
        (["--masks", "MASKS", "--images", "nowhere"], "nowhere"),
        (["--masks", "MASKS", "--images", "EMPTY"], "EMPTY"),
        (["--masks", "MASKS", "--batch-size", "100"], "--batch-size 100 does not fit 12 images"),
        (["--masks", "MASKS", "--method", "hapicl_x"], "unknown method 'hapicl_x'"),
        (["--masks", "MASKS", "--arch", "resnet19"], "unknown backbone 'resnet19'"),
        (["--masks", "MASKS", "--image-size", "16"], "--image-size 16 leaves a map under 4 x 4 cells"),
        (["--masks", "MASKS", "--set", "optimiser.name=sgd"], "did you mean optimizer"),
        (["--masks", "MASKS", "--set", "config.temprature=1"], "did you mean config.temperature"),
        (["--masks", "MASKS", "--recipe", "none"], "there is no recipe none"),
        (["--masks", "MASKS", "--resume", "auto"], "--resume auto needs --out"),
        (["--masks", "MASKS", "--resume", "none.pt"], r"--resume none\.pt: there is no run"),
        (["--masks", "MASKS", "--recipe", "BINARY"], "cannot read the recipe .*binary.yaml"),
        (["--masks", "MASKS", "--set", "config=[1"], r"--set 'config=\[1': the value is no YAML of settings"),
        (["--masks", "MASKS", "--set", "optimizer.base_lr=nan"], "takes a finite number"),
        (
            ["--masks", "MASKS", "--set", "config.photometric.blur=2"],
            r"config\.photometric\.blur: should be at most 1",
        ),
        (
            ["--masks", "MASKS", "--set", "config.photometric.hue=1"],
            r"config\.photometric\.hue: should be at most 0\.5",
        ),
        (["--masks", "MASKS", "--image-size", "100000"], "image_size: should be at most 8192"),
        (["--masks", "MASKS", "--seed", "-1"], "seed: should be at least 0"),
        (
            ["--masks", "MASKS", "--seed", str(2**64)],
            "seed: should be at most 18446744073709551615",
        ),
        (["--masks", "MASKS", "--out", "FILE/run"], "cannot write .*a folder on the way is a file"),
        (["--masks", "PART"], "3"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(command, tmp_path, monkeypatch, flat_folder, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    places = {"MASKS": write(flat_folder, tmp_path / "masks.h5"), "IMAGES": str(flat_folder)}
    places["BINARY"] = str(tmp_path / "binary.yaml")
    if "PART" in arguments:
        write(flat_folder, tmp_path / "part.h5", leave_out=3)
        arguments = ["--masks", str(tmp_path / "part.h5"), "--images", str(flat_folder)]
    given = [places.get(argument, argument) for argument in arguments]
    small = [*SMALL, "--steps", "2"]
    for option in ("--batch-size", "--arch", "--image-size"):
        if option in given:
            del small[small.index(option) : small.index(option) + 2]
    code, _, err = command("pretrain", *given, *small)
    assert code == 2
    (said,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert re.search(message, said), said
    assert "Traceback" not in err


def test_methods_are_listed_with_source_and_needs(command):
    code, out, _ = command("methods")
    assert code == 0
    for part in ("hapicl_m", "moco_v2", "arXiv", "masks", "jigsaw patches"):
        assert part in out


def test_a_report_of_no_run_is_refused(command, tmp_path):
    code, _, err = command("report", tmp_path, "--out", tmp_path / "r.html")
    assert (code, "is no run folder" in err) == (2, True)

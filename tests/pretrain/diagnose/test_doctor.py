import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hapicl.data.images.decode import image_size
from hapicl.data.images.folder import find_images
from hapicl.data.masks.writer import pack_mask, write_masks
from hapicl.pretrain.commands import doctor as command
from hapicl.pretrain.diagnose import doctor
from hapicl.pretrain.diagnose.doctor import Diagnosis, as_text, input_advice

STAGES = {
    "read": 9000.0,
    "decode": 600.0,
    "decode as needed": 650.0,
    "mask": 0.0,
    "crop": 2500.0,
    "worker": 480.0,
}


@pytest.fixture
def masks(flat_folder, tmp_path):
    """A mask file of the flat folder."""
    rows = []
    for path in find_images(flat_folder):
        size = image_size(flat_folder / path)
        mask = np.zeros(size, np.bool_)
        mask[10:30, 10:30] = True
        rows.append(pack_mask(path, mask, size))
    out = tmp_path / "masks.h5"
    write_masks(out, rows, {"recipe": {}, "image_root": str(flat_folder)})
    return out


def test_prints_every_stage_and_the_wall_in_one_screen(masks, monkeypatch):
    monkeypatch.setattr(doctor.diagnose, "__kwdefaults__", {"samples": 4, "seconds": 0.05})
    options = ["--arch", "resnet18", "--image-size", "32", "--batch-size", "4", "--samples", "4"]
    result = CliRunner().invoke(
        command, ["--masks", str(masks), "--workers", "0", "--device", "cpu", *options]
    )
    assert result.exit_code == 0, result.output
    for word in ("read", "decode", "mask", "crop", "worker", "loader", "transfer", "augmentation", "step"):
        assert f"  {word}" in result.output
    assert "the bottleneck is" in result.output
    assert len(result.output.splitlines()) <= 24


def diagnosed(worker_seconds, step_seconds, **stages):
    loader = type("Made", (), {"workers": 4})()
    device = torch.device("cuda")
    return doctor._name_bottleneck(
        {**STAGES, **stages}, loader, worker_seconds, (1e-5, 1e-5, step_seconds), device
    )


def test_no_samples_are_refused_before_anything_is_read():
    result = CliRunner().invoke(command, ["--masks", "nowhere.h5", "--samples", "0"])
    assert (result.exit_code, "'--samples': 0" in result.output) == (2, True)


def test_names_the_input_path_and_asks_for_workers_or_a_pack():
    slow_input = diagnosed(1 / 1900, 1 / 4000)
    assert "the input path: 1900 samples/s from 4 workers, mostly decode as needed" in slow_input.bottleneck
    assert "hapicl data pack" in slow_input.advice[0]
    assert "--workers 8" in slow_input.advice[1]
    slow_disk = diagnosed(1 / 200, 1 / 4000, read=60.0)
    assert "mostly read" in slow_disk.bottleneck
    assert "hapicl data pack" in slow_disk.advice[0]


def test_names_the_step_where_the_input_keeps_up():
    assert diagnosed(1 / 9000, 1 / 300).bottleneck.startswith("the step: 298 samples/s")
    assert diagnosed(1 / 9000, 2).bottleneck.startswith("the step: 0.5 samples/s")  # was told as 0


def test_more_workers_are_no_cure_on_the_cpu():
    assert "share the cores" in input_advice("crop", STAGES, 1, 2.0, torch.device("cpu"))[-1]


def test_a_stage_that_is_not_there_shows_a_dash():
    made = Diagnosis(
        stages=STAGES,
        workers=2,
        loader=900.0,
        transfer=0.0,
        augment=800.0,
        step=30.0,
        bottleneck="x",
        advice=["y"],
    )
    lines = {line.split()[0]: line for line in as_text(made).splitlines()}
    assert " - " in lines["transfer"]
    assert " - " in lines["mask"]
    assert "900" in lines["loader"]

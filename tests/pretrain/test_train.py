"""Whole runs on small real files: the run folder, resume, refusals, and weights that torchvision loads."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import joint
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from hapicl.common.errors import UserError
from hapicl.data.images.decode import image_size
from hapicl.data.images.folder import find_images
from hapicl.data.masks.writer import pack_mask, write_masks
from hapicl.engine.checkpoint import CheckpointError, load_checkpoint
from hapicl.engine.loggers.run_files import read_metrics
from hapicl.models.backbones.build import build_backbone
from hapicl.pretrain import components as assembly
from hapicl.pretrain import train
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.config.settings import RunSettings
from hapicl.pretrain.report.page import write_report
from hapicl.pretrain.resume import check_same_training
from hapicl.pretrain.train import export_backbone, pretrain

SMALL = {"arch": "resnet18", "image_size": 32, "batch_size": 4, "workers": 0, "device": "cpu", "steps": 4}
CONFIG = {"config": {"pixel_hidden": 16, "pixel_dim": 8, "queue_length": 8}}


@pytest.fixture
def masks(tmp_path, flat_folder):
    """A mask file for the 12 small images: a box in the middle of each."""
    rows = []
    for path in find_images(flat_folder):
        height, width = image_size(flat_folder / path)
        mask = np.zeros((height, width), bool)
        mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
        rows.append(pack_mask(path, mask, (height, width), confidence=0.9))
    out = tmp_path / "masks.h5"
    write_masks(out, rows, {"image_root": str(flat_folder), "recipe": {"name": "box"}})
    return str(out)


def settings(masks, out, **changes):
    return resolve({"masks": masks, "out": str(out)} | SMALL | CONFIG | changes)[0]


def test_a_run_whose_last_step_met_a_signal_was_stopped_after_step_4_of_4(tmp_path, masks, monkeypatch):
    def signalled(*arguments, **options):
        return dataclasses.replace(real(*arguments, **options), stopped_by="SIGTERM")

    real = train.fit
    monkeypatch.setattr(train, "fit", signalled)
    done = pretrain(settings(masks, tmp_path / "whole"), show=False)
    part = pretrain(settings(masks, tmp_path / "part", stop_after=2), show=False)
    assert (done.step, done.stopped_by) == (4, None)
    assert (part.step, part.stopped_by) == (2, "SIGTERM")
    assert "done: " in (tmp_path / "whole" / "train.log").read_text().splitlines()[-1]
    assert "stopped after step 2 of 4" in (tmp_path / "part" / "train.log").read_text().splitlines()[-1]


def test_a_run_leaves_all_it_should(tmp_path, masks):
    out = tmp_path / "a run"
    result = pretrain(settings(masks, out, log_every=1, checkpoint_every=2, keep_every=2), show=False)
    assert (result.step, result.total_steps, result.stopped_by) == (4, 4, None)
    assert {entry.name for entry in out.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "train.log",
        "last.pt",
        "previous.pt",
        "checkpoints",
        "backbone.safetensors",
        "views.npz",
    }
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["config"]["photometric"]["blur"] == 0.5  # complete, defaults included
    assert config["settings"]["config"]["batch_norm_groups"] == 1  # and what was left open settled
    assert config["data"]["images"] == 12
    assert config["lr"] == pytest.approx(0.12 * 4 / 256)
    log = (out / "train.log").read_text()
    assert "learning rate 0.001875 = 0.12 x 4 / 256 (sgd)" in log
    line = list(read_metrics(out))[-1]
    assert {"loss/instance", "loss/pixel", "chance/instance", "chance/pixel"} <= line.keys()
    assert {"pixel/similarity_gap", "schedule/momentum"} <= line.keys()
    with np.load(out / "views.npz") as kept:
        assert kept["views"].shape == (4, 2, 32, 32, 3)
        assert kept["occupancy"].shape[:2] == (4, 2)
    weights = safetensors.torch.load_file(out / "backbone.safetensors")
    assert_torchvision_loads("resnet18", weights)
    trained = load_checkpoint(out / "last.pt")["module"]
    assert torch.equal(weights["conv1.weight"], trained["backbone.trunk.conv1.weight"])


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_exported_weights_give_torchvisions_features(tmp_path, arch):
    backbone = build_backbone(arch, image_size=64, stem="imagenet").eval()
    export_backbone(backbone, tmp_path / "w.safetensors", RunSettings(arch=arch))
    model = assert_torchvision_loads(arch, safetensors.torch.load_file(tmp_path / "w.safetensors"))
    model.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)["layer4"].mean((2, 3))
        torch.testing.assert_close(model.eval()(images), expected)


def assert_torchvision_loads(arch, weights):
    model = torchvision.models.get_model(arch)
    missing = model.load_state_dict(weights, strict=False)
    assert (set(missing.missing_keys), missing.unexpected_keys) == ({"fc.weight", "fc.bias"}, [])
    return model


def test_a_resumed_run_with_other_workers_ends_in_the_same_state(tmp_path, masks):
    pretrain(settings(masks, tmp_path / "whole"), show=False)
    part = pretrain(settings(masks, tmp_path / "parts", stop_after=2), show=False)
    assert (part.step, part.stopped_by) == (2, "stop_after")
    rest = pretrain(settings(masks, tmp_path / "parts", resume="auto", workers=1), show=False)
    assert (rest.step, rest.stopped_by) == (4, None)
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert [
        key for key, value in whole["module"].items() if not torch.equal(value, parts["module"][key])
    ] == []
    for number, state in whole["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], parts["optimizer"]["state"][number]["momentum_buffer"])


def test_the_largest_seed_trains_and_resumes(tmp_path, masks):
    asked = settings(masks, tmp_path / "run", seed=2**64 - 1, stop_after=1, steps=2)
    assert pretrain(asked, show=False).step == 1
    found, _ = resolve({"resume": str(tmp_path / "run"), "workers": 0, "device": "cpu"})
    assert found.seed == 2**64 - 1
    assert pretrain(found, show=False).step == 2


def test_the_report_refuses_images_that_are_not_there(tmp_path, masks, flat_folder):
    pretrain(settings(masks, tmp_path / "run", steps=1), show=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_text("no image")
    page = tmp_path / "report.html"
    for images, message in (("nope", "no images at"), ("empty", "no images found"), ("broken", "a.jpg")):
        with pytest.raises(UserError, match=message):
            write_report([str(tmp_path / "run")], page, images=str(tmp_path / images))
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: it is a folder"):
        write_report([str(tmp_path / "run")], tmp_path)
    assert not page.exists()
    write_report([str(tmp_path / "run")], page, images=str(flat_folder))
    assert "principal components" in page.read_text()


def test_resume_by_path_needs_nothing_else(tmp_path, masks):
    out = tmp_path / "run"
    pretrain(settings(masks, out, stop_after=2), show=False)
    found, notes = resolve({"resume": str(out / "last.pt")})
    assert notes == [f"settings from {out / 'config.json'}"]
    assert (found.method, found.steps, found.masks, found.out) == ("hapicl_m", 4, masks, str(out))
    assert found.stop_after is None
    assert pretrain(found, show=False).step == 4


def test_a_folder_in_use_is_refused_with_the_ways_on(tmp_path, masks):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(UserError, match=r"already holds files; .*--resume auto, or choose another --out"):
        pretrain(settings(masks, tmp_path / "run"), show=False)
    with pytest.raises(UserError, match="already holds files"):
        pretrain(settings(masks, tmp_path / "run", resume="auto"), show=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        pretrain(settings(masks, tmp_path / "file"), show=False)
    with pytest.raises(UserError, match=r"cannot write .*file/run.*: a folder on the way is a file"):
        pretrain(settings(masks, tmp_path / "file" / "run"), show=False)


def test_a_run_that_died_before_its_first_checkpoint_starts_afresh(tmp_path, masks):
    out = tmp_path / "run"
    assert pretrain(settings(masks, out, steps=1), show=False).step == 1
    (out / "last.pt").unlink()
    (out / "backbone.safetensors").unlink()
    assert (out / "config.json").exists()
    assert pretrain(settings(masks, out, steps=1, resume="auto"), show=False).step == 1
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_mistyped_knn_folder_leaves_no_run_folder_behind(tmp_path, masks):
    folders = {"knn_train": str(tmp_path / "none"), "knn_val": str(tmp_path / "none")}
    with pytest.raises(UserError, match="cannot read the image folder"):
        pretrain(settings(masks, tmp_path / "run", **folders), show=False)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_by_another_method(tmp_path, masks):
    pretrain(settings(masks, tmp_path / "run", stop_after=1), show=False)
    with pytest.raises(UserError, match="is a run of hapicl_m, not simclr; choose another --out"):
        resolve({"out": str(tmp_path / "run"), "resume": "auto", "method": "simclr"})


def test_resuming_as_another_training_is_refused(tmp_path, masks):
    out = tmp_path / "run"
    pretrain(settings(masks, out, stop_after=1), show=False)
    with pytest.raises(UserError, match=r"another training: batch_size was 4, is 6; seed was 0, is 3"):
        pretrain(settings(masks, out, resume="auto", seed=3, batch_size=6), show=False)
    with pytest.raises(UserError, match=r"the images are others \(12 then, 8 now\)"):
        pretrain(settings(masks, out, resume="auto", limit=8), show=False)
    damaged = out / "last.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        pretrain(settings(masks, out, resume="auto"), show=False)


def test_images_whose_mask_is_flagged_are_left_out_and_counted(tmp_path, flat_folder):
    paths, rows = find_images(flat_folder), []
    for number, path in enumerate(paths[:11]):
        size = image_size(flat_folder / path)
        mask = np.tri(*size, dtype=bool)
        rows.append(pack_mask(path, mask, size, confidence=0.1 if number < 2 else 0.9, low_confidence=0.5))
    masks, out = tmp_path / "masks.h5", tmp_path / "run"
    write_masks(masks, rows, {"image_root": str(flat_folder), "recipe": {"name": "triangle"}})
    chosen = {"images": str(flat_folder), "missing_masks": "skip", "use_low_confidence": False}
    pretrain(settings(str(masks), out, stop_after=1, **chosen), show=False)
    start = ") on 9 images (left out: 1 without a mask or unreadable, 2 whose mask is flagged low_conf"
    assert start in (out / "train.log").read_text()
    assert json.loads((out / "config.json").read_text())["data"]["images"] == 9
    # it belongs to the training: another choice is not a continuation
    with pytest.raises(
        UserError, match=r"another training: use_low_confidence was False, is True; the images"
    ):
        pretrain(settings(str(masks), out, resume="auto", use_low_confidence=True), show=False)


def test_accumulation_says_what_it_changes(tmp_path, masks):
    out = tmp_path / "run"
    pretrain(
        settings(masks, out, grad_accum_steps=2, steps=2, config={**CONFIG["config"], "queue_length": 4}),
        show=False,
    )
    assert "grad_accum_steps=2 computes 4 samples in parts of 2" in (out / "train.log").read_text()


@pytest.mark.parametrize("computes", [True, False])
def test_bf16_was_many_times_slower_without_a_word_where_the_processor_imitates_it(
    tmp_path, masks, monkeypatch, computes
):
    monkeypatch.setattr(train, "computes_bf16", lambda: computes)
    pretrain(settings(masks, tmp_path / "run", steps=1, precision="bf16"), show=False)
    assert ("this processor imitates bf16" in (tmp_path / "run" / "train.log").read_text()) is not computes


def test_the_online_knn_is_logged(tmp_path, masks, flat_folder):
    labelled = tmp_path / "labelled"
    for number, path in enumerate(find_images(flat_folder)):
        target = labelled / "ab"[number % 2] / pathlib.Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((flat_folder / path).read_bytes())
    pretrain(
        settings(
            masks, tmp_path / "run", steps=2, knn_train=str(labelled), knn_val=str(labelled), knn_every=1
        ),
        show=False,
    )
    accuracies = [line["knn/accuracy"] for line in read_metrics(tmp_path / "run") if "knn/accuracy" in line]
    assert len(accuracies) == 3  # random weights, then after each step
    assert all(0 <= value <= 1 for value in accuracies)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a C++ compiler at work
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch 2.11's own
def test_a_compiled_run_trains_as_an_uncompiled_one(tmp_path, masks, monkeypatch):
    monkeypatch.setattr(assembly, "build_backbone", lambda *_, **__: joint.TinyBackbone())
    for name, compiled in (("plain", False), ("compiled", True)):
        changes = {"method": "simclr", "config": {}, "steps": 2, "log_every": 1, "compile": compiled}
        pretrain(settings(masks, tmp_path / name, **changes), show=False)
    plain, compiled = (list(read_metrics(tmp_path / name)) for name in ("plain", "compiled"))
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], rel=1e-3)
    names = [load_checkpoint(tmp_path / name / "last.pt")["module"].keys() for name in ("plain", "compiled")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_sigterm_ends_the_command_with_code_75_and_a_checkpoint(tmp_path, masks):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "hapicl",
        "pretrain",
        "--masks",
        masks,
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    command += ["--arch", "resnet18", "--image-size", "32", "--batch-size", "4", "--workers", "1"]
    started = subprocess.Popen(
        [*command, "--steps", "100000", "--set", "log_every=1"], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not len(list(read_metrics(out))) >= 3:
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 75, said
    logged = [line["step"] for line in read_metrics(out)]
    assert load_checkpoint(out / "last.pt")["step"] == logged[-1]
    assert b"--resume auto" in said


@pytest.mark.slow
def test_torchrun_trains_as_one_process_and_resumes_at_another_world_size(tmp_path, masks):
    arguments = ["--masks", masks, "--method", "hapicl_s", "--arch", "resnet18", "--image-size", "32"]
    arguments += ["--batch-size", "4", "--workers", "0", "--device", "cpu", "--steps", "4"]
    arguments += ["--set", "config.pixel_hidden=16", "--set", "config.pixel_dim=8"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [
            *torchrun,
            "-m",
            "hapicl.cli",
            "pretrain",
            *arguments,
            "--out",
            str(tmp_path / "two"),
            "--set",
            "stop_after=2",
            "--set",
            "log_every=1",
        ],
        check=True,
        env=environment,
        timeout=200,
    )
    assert json.loads((tmp_path / "two" / "config.json").read_text())["environment"]["processes"] == 2
    pretrain(
        resolve({"resume": "auto", "out": str(tmp_path / "two"), "device": "cpu", "workers": 0})[0],
        show=False,
    )
    alone = settings(
        masks, tmp_path / "one", log_every=1, method="hapicl_s", config={"pixel_hidden": 16, "pixel_dim": 8}
    )
    pretrain(alone, show=False)
    one, two = (list(read_metrics(tmp_path / name)) for name in ("one", "two"))
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    # float32 rounds sums over processes differently, which ReLU networks amplify from step to step;
    # test_joint_methods holds whole states to 1e-6 in float64
    for name in ("loss", "loss/instance", "loss/pixel", "similarity/positive", "mask/foreground_fraction"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4), name
    foreground = [lines[3]["mask/foreground_fraction"] for lines in (one, two)]
    assert foreground[1] == pytest.approx(foreground[0])  # the same crops


def test_a_finished_run_could_not_be_extended(tmp_path, masks):
    """`--steps` raised on resume was "of another training"."""
    out = tmp_path / "run"
    pretrain(settings(masks, out, log_every=1), show=False)
    with pytest.raises(UserError, match=r"another training: steps was 4, is 3"):
        pretrain(settings(masks, out, resume="auto", steps=3), show=False)
    result = pretrain(settings(masks, out, resume="auto", steps=6), show=False)
    assert (result.step, result.total_steps) == (6, 6)
    config = json.loads((out / "config.json").read_text())
    assert config["extended"] == [{"at_step": 4, "from_steps": 4}]
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3, 4, 5, 6]
    said = (out / "train.log").read_text()
    assert "extended from 4 to 6 steps at step 4: from here the cosine schedule is that of 6 steps" in said
    pretrain(settings(masks, out, resume="auto", steps=6), show=False)  # done; says nothing new
    assert (out / "train.log").read_text().count("extended from") == 1
    assert json.loads((out / "config.json").read_text())["extended"] == config["extended"]


def test_the_stem_of_small_views_was_said_nowhere(tmp_path, masks):
    """Its weights load into another network and give other features there."""
    out = tmp_path / "run"
    pretrain(settings(masks, out, image_size=64), show=False)
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["stem"] == "no_pool"
    assert config["restore"] == ["model.maxpool = torch.nn.Identity()"]
    said = (out / "train.log").read_text()
    assert "resnet18 (stem no_pool) on 12 images" in said
    model = torchvision.models.resnet18()
    model.load_state_dict(safetensors.torch.load_file(out / "backbone.safetensors"), strict=False)
    for line in config["restore"]:
        assert line in said
        exec(line, {"model": model, "torch": torch})
    model.fc = torch.nn.Identity()
    backbone = build_backbone("resnet18", image_size=64)
    backbone.trunk.load_state_dict(model.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        ours = backbone.eval()(images)["layer4"].mean((2, 3))
        torch.testing.assert_close(model.eval()(images), ours)


def test_a_run_whose_config_still_says_auto_goes_on(tmp_path, masks):
    out = tmp_path / "run"
    pretrain(settings(masks, out, stop_after=2), show=False)
    state = torch.load(out / "last.pt", weights_only=True)
    config = json.loads((out / "config.json").read_text())
    before = {**config, "settings": {**config["settings"], "stem": "auto"}}
    check_same_training(before, config, out / "last.pt")
    assert state["config"]["settings"]["stem"] == "stride1"
    other = {**config, "settings": {**config["settings"], "stem": "no_pool"}}
    with pytest.raises(UserError, match="stem was 'stride1', is 'no_pool'"):
        check_same_training(before, other, out / "last.pt")

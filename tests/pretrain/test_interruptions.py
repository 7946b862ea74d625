"""Runs that are killed, stopped, or started twice: nothing is lost, and nothing is written over."""

import json
import os
import socket
import subprocess
import sys

import pytest
import small_run

from hapicl.common.errors import UserError
from hapicl.common.locks import hold_folder
from hapicl.data.masks.reader import MaskReader
from hapicl.engine.checkpoint import load_checkpoint
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.methods.hapicl_m import HAPiCLM
from hapicl.pretrain.train import pretrain


@pytest.fixture
def masks(tmp_path, flat_folder):
    """A mask file for the 12 small images."""
    return small_run.write_box_masks(flat_folder, tmp_path / "masks.h5")


def run(masks, out, **changes):
    given = {"masks": masks, "out": str(out)} | small_run.OPTIONS | small_run.CONFIG | changes
    return pretrain(resolve(given)[0], show=False)


def test_two_runs_never_share_a_folder(tmp_path, masks):
    """Both said done and wrote over each other; --resume auto beside a living run did too."""
    out = tmp_path / "run"
    run(masks, out, stop_after=1)
    before = (out / "last.pt").read_bytes()
    with hold_folder(out, advice="wait"):
        for resume in ({}, {"resume": "auto"}):
            with pytest.raises(UserError, match=rf"run is in use by process {os.getpid()} on .*; wait for"):
                run(masks, out, **resume)
    assert (out / "last.pt").read_bytes() == before
    assert run(masks, out, resume="auto").step == 4
    assert not (out / ".lock").exists()


def test_a_run_killed_inside_its_first_checkpoint_starts_afresh(tmp_path, masks):
    """The file in the making that a kill left made --resume auto refuse the folder for good."""
    out = tmp_path / "run"
    run(masks, out, steps=1)
    (out / "last.pt").unlink()
    (out / "backbone.safetensors").unlink()
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = socket.gethostname()
    (out / f".last.pt.{host}.{dead.pid}.part").write_text("half")
    (out / f".last.pt.another-{host}.{dead.pid}.part").write_text("of another machine")
    assert run(masks, out, steps=1, resume="auto").step == 1
    assert [path.name for path in out.glob(".*")] == [f".last.pt.another-{host}.{dead.pid}.part"]


@pytest.mark.slow
def test_two_processes_of_one_run_leave_together_when_the_folder_is_held(tmp_path, masks):
    """Only the first takes the lock; the second must not wait for it until a time-out."""
    given = {"masks": masks, "out": str(tmp_path / "run")} | small_run.OPTIONS | small_run.CONFIG
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    with hold_folder(tmp_path / "run", advice="wait"):
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "hapicl", "pretrain", *small_run.arguments(given)],
                env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]
        said = [process.communicate(timeout=120)[1].splitlines() for process in started]
    assert [process.returncode for process in started] == [2, 2], said
    assert said[0][-1].startswith(f"error: {tmp_path / 'run'} is in use by process {os.getpid()} on ")
    assert said[1] == []
    assert "Traceback" not in str(said)


def test_a_finished_run_holds_nothing(tmp_path, masks):
    out = tmp_path / "run"
    run(masks, out, steps=2, checkpoint_every=1)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert load_checkpoint(out / "previous.pt")["step"] == 1


def test_a_damaged_image_whose_name_is_not_utf8_ended_the_run(tmp_path, flat_folder):
    """train.log could not hold the name."""
    odd = os.fsencode(flat_folder) + b"/caf\xe9\n.png"
    with open(odd, "wb") as file:
        file.write((flat_folder / "image_00.png").read_bytes()[:300])
    given = {"images": str(flat_folder), "method": "simclr", "out": str(tmp_path / "run")}
    assert pretrain(resolve(given | small_run.OPTIONS)[0], show=False).step == 4
    assert r"image replaced by the next one in the list: caf\udce9\n.png: " in (
        tmp_path / "run" / "train.log"
    ).read_text(encoding="utf-8")


def test_a_mask_file_that_changes_during_a_run_ended_without_a_checkpoint(tmp_path, masks):
    def spoil(step, total):
        if step == 2:
            with open(masks, "r+b") as file:
                file.truncate(1000)
        return {}

    given = {"masks": masks, "out": str(tmp_path / "run")} | small_run.OPTIONS | small_run.CONFIG
    settings = resolve(given)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HAPiCLM, "after_step", lambda self, step, total: spoil(step, total))
        with pytest.raises(UserError, match="was changed while it was in use") as raised:
            pretrain(settings, show=False)
    last = tmp_path / "run" / "last.pt"
    assert raised.value.__notes__[0].startswith(f"{last} holds step 3 of 4")
    assert load_checkpoint(last)["step"] == 3


def test_another_mask_file_is_another_training(tmp_path, masks, flat_folder):
    """A mask file that was built again by another recipe went unnoticed on resume."""
    out = tmp_path / "run"
    run(masks, out, stop_after=1)
    digest = MaskReader(masks).content_digest
    assert load_checkpoint(out / "last.pt")["config"]["data"]["masks_digest"] == digest
    assert json.loads((out / "config.json").read_text())["data"]["masks_digest"] == digest
    small_run.write_box_masks(flat_folder, tmp_path / "masks.h5", border=3)
    with pytest.raises(
        UserError, match=rf"another training: {masks} holds other masks .*digest {digest} then"
    ):
        run(masks, out, resume="auto")
    small_run.write_box_masks(flat_folder, tmp_path / "masks.h5")  # the same again
    assert run(masks, out, resume="auto").step == 4

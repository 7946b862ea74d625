"""`--logger` of a run: what it takes, what it leaves, and that no dashboard ends a training."""

import json
import sys

import pytest
from click.testing import CliRunner
from small_run import OPTIONS, arguments, draw_images, write_box_masks

from hapicl.cli import command_line
from hapicl.common.config import build
from hapicl.common.errors import UserError
from hapicl.pretrain.config.resolve import resolve
from hapicl.pretrain.config.settings import RunSettings
from hapicl.pretrain.train import pretrain

SMALL = {**OPTIONS, "method": "hapicl_s", "arch": "timm:test_resnet", "image_size": 128, "steps": 2}


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_box_masks(draw_images(folder / "images", 4), folder / "masks.h5")


def run(masks, out, **changes):
    settings, _ = resolve({"masks": masks, "out": str(out), **SMALL} | changes)
    return pretrain(settings, show=False)


def test_names_come_as_a_list_or_with_commas_and_none_stands_alone():
    assert RunSettings().dashboards == ("tensorboard",)
    assert build(RunSettings, {"logger": "wandb, mlflow,wandb"}).dashboards == ("wandb", "mlflow")
    assert build(RunSettings, {"logger": ["none"]}).dashboards == ()
    with pytest.raises(UserError, match="--logger none stands alone"):
        build(RunSettings, {"logger": "none,wandb"})
    with pytest.raises(UserError, match="setting logger"):
        build(RunSettings, {"logger": "wandbb"})


def test_a_run_without_dashboards_keeps_its_numbers(tmp_path, masks):
    words = arguments({"masks": masks, "out": tmp_path / "run", **SMALL})
    result = CliRunner().invoke(command_line, ["pretrain", *words, "--logger", "none"])
    assert result.exit_code == 0, result.output
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "metrics.jsonl" in left
    assert not left & {"tensorboard", "dashboards.json"}


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_server_that_is_gone_does_not_end_a_training(tmp_path, masks, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ended = run(masks, tmp_path / "run", logger="mlflow")
    assert (ended.step, ended.stopped_by) == (2, None)
    assert (tmp_path / "run/train.log").read_text().count("the dashboard mlflow is given up") == 1


def test_config_json_keeps_the_command_of_every_session(tmp_path, masks, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["hapicl", "pretrain", "--out", "a run"])
    run(masks, tmp_path / "run", logger="none", stop_after=1)
    run(masks, tmp_path / "run", resume="auto")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["settings"]["logger"] == ["none"]  # stays, unless the resumed session is given another
    assert [session["at_step"] for session in config["sessions"]] == [0, 1]
    assert [session["command"] for session in config["sessions"]] == 2 * ["hapicl pretrain --out 'a run'"]

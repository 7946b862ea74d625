"""Dashboards: the real libraries offline, resumed runs, and one that fails, hangs or is missing."""

import json
import struct
import threading
import time

import pytest

from hapicl.common.errors import UserError
from hapicl.engine.loggers import dashboards
from hapicl.engine.loggers.dashboards import Feed, check_installed
from hapicl.engine.loggers.run_files import read_metrics
from hapicl.engine.loggers.run_logger import RunLogger

# the libraries warn of their own futures, from threads of theirs too
foreign = pytest.mark.filterwarnings("ignore")
CONFIG = {"settings": {"arch": "resnet18", "optimizer": {"base_lr": 0.1}}, "total_steps": 4}


def record(folder, name, steps, *, resumed_step=0):
    """One session of a run: its numbers to one dashboard."""
    logger = RunLogger(
        folder, total=4, resumed_step=resumed_step, show=False, dashboards=(name,), config=CONFIG
    )
    with logger:
        for step in steps:
            logger.record(step, {"loss": 10.0 - step, "loss/pixel": 1.0})
    assert "given up" not in ((folder / "train.log").read_text())


def wandb_records(path):
    """The records of an offline run's file, once its last one is there: wandb's own process writes it."""
    for _ in range(200):
        records = _wandb_records(path)
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def _wandb_records(path):
    """Read LevelDB's log format, which wandb writes in blocks of 32 KB."""
    from wandb.proto import wandb_internal_pb2

    data, at, found = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        assert kind == 1, "a record of more than one block"
        if at + 7 + length > len(data):  # half written
            break
        found.append(wandb_internal_pb2.Record.FromString(data[at + 7 : at + 7 + length]))
        at += 7 + length
    return found


@foreign
def test_a_run_goes_to_weights_and_biases_offline_and_a_resumed_one_on_in_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "first"
    record(folder, "wandb", [1, 2])
    record(folder, "wandb", [3, 4], resumed_step=2)
    known = json.loads((folder / dashboards.REMEMBERED).read_text())["wandb"]
    assert known["project"] == "hapicl"
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{known['id']}.wandb"] * 2
    steps = {}
    for path in files:
        for entry in wandb_records(path):
            if entry.WhichOneof("record_type") == "run":
                assert entry.run.run_id == known["id"]
            if entry.WhichOneof("record_type") == "history":
                values = {item.key or "/".join(item.nested_key): json.loads(item.value_json)
                          for item in entry.history.item}  # fmt: skip
                steps[entry.history.step.num] = values["loss"]
    assert steps == {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.0}


@foreign
def test_a_run_goes_to_mlflows_store_and_a_resumed_one_on_in_it(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    folder = tmp_path / "first"
    record(folder, "mlflow", [1, 2])
    record(folder, "mlflow", [3, 4], resumed_step=2)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("hapicl").experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "loss/pixel")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    assert run.data.metrics["loss/total"] == 6.0
    assert run.data.params["settings.optimizer.base_lr"] == "0.1"


@foreign
def test_nobody_logged_in_is_said_before_the_training(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", lambda **_: False)  # as it says without a key; asking would wait
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    try:
        with (
            pytest.raises(UserError, match="nobody is logged in at Weights & Biases; run `wandb login`"),
            RunLogger(tmp_path / "run", total=1, show=False, dashboards=("wandb",)),
        ):
            pass
    finally:
        wandb.teardown()


@foreign
def test_a_place_that_mlflow_refuses_is_said_before_the_training(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    with (
        pytest.raises(UserError, match=r"^--logger mlflow: .*set MLFLOW_TRACKING_URI to your server"),
        RunLogger(tmp_path / "run", total=1, show=False, dashboards=("mlflow",)),
    ):
        pass


def test_a_missing_library_is_said_with_its_extra(monkeypatch):
    monkeypatch.setattr(dashboards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--logger wandb needs wandb: pip install 'hapicl\[wandb\]'"):
        check_installed(["wandb"])


class Failing:
    """A dashboard whose connection is lost at one step."""

    def __init__(self, at):
        self.at, self.steps = at, []

    def record(self, step, values):
        self.steps.append(step)
        if step == self.at:
            raise ConnectionError("the server is gone\nand more")

    def close(self, *, failed):
        raise AssertionError("a dashboard that was given up is not spoken to again")


def test_a_dashboard_that_fails_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    failing = Failing(at=2)
    monkeypatch.setattr(
        "hapicl.engine.loggers.run_logger.open_feed", lambda name, facts: Feed(name, lambda: failing)
    )
    with RunLogger(tmp_path, total=9, show=False, dashboards=("wandb",)) as logger:
        for step in range(1, 10):
            logger.record(step, {"loss": 1.0})
            while step == 2 and not logger._feeds[0]._complaint:
                time.sleep(0.01)
    assert failing.steps == [1, 2]
    told = [line for line in (tmp_path / "train.log").read_text().splitlines() if "given up" in line]
    assert len(told) == 1
    assert "(ConnectionError: the server is gone)" in told[0]
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 10))


def test_a_dashboard_that_cannot_be_opened_ends_nothing(tmp_path, monkeypatch):
    def refuse():
        raise RuntimeError("no route to host")

    monkeypatch.setattr("hapicl.engine.loggers.run_logger.open_feed", lambda name, facts: Feed(name, refuse))
    with RunLogger(tmp_path, total=1, show=False, dashboards=("wandb",)) as logger:
        logger.record(1, {"loss": 1.0})
    assert (tmp_path / "train.log").read_text().count("RuntimeError: no route to host") == 1


class Hanging:
    """A dashboard that does not come back before it is let go."""

    def __init__(self):
        self.gate = threading.Event()

    def record(self, step, values):
        self.gate.wait()

    def close(self, *, failed):
        pass


def test_a_dashboard_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(dashboards, "LAST_WAIT_SECONDS", 0.05)
    hanging = Hanging()
    feed = Feed("slow", lambda: hanging)
    for step in range(100):
        feed.record(step, {"loss": 1.0})  # would wait for ever
    feed.close(failed=False)
    hanging.gate.set()
    assert "has not answered" in feed.take_complaint()
    assert feed.take_complaint() == ""

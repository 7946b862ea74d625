"""What the online kNN costs: it says so, draws images by seed, and warns when it takes too much time."""

import logging
import pathlib

import torch
from joint import TinyBackbone

from hapicl.data.images.class_folders import class_folders
from hapicl.data.images.folder import find_images
from hapicl.engine.batchnorm import split_batch_norm
from hapicl.engine.distributed import World
from hapicl.models.backbones.build import build_backbone
from hapicl.models.batch_statistics import is_untouched
from hapicl.models.features import Features
from hapicl.pretrain.config.settings import RunSettings
from hapicl.pretrain.diagnose import online_knn
from hapicl.pretrain.diagnose.online_knn import OnlineKnn, draw_images


def test_images_are_drawn_once_by_seed_and_differ_between_the_folders():
    chosen = draw_images(1000, 50, seed=3, which=0)
    assert chosen == sorted(set(chosen))
    assert (len(chosen), max(chosen) < 1000) == (50, True)
    assert chosen == draw_images(1000, 50, seed=3, which=0)
    assert chosen != draw_images(1000, 50, seed=3, which=1)
    assert chosen != draw_images(1000, 50, seed=4, which=0)


def test_none_or_more_than_there_are_takes_all():
    assert draw_images(5, 0, seed=0, which=0) == draw_images(5, 9, seed=0, which=0) == [0, 1, 2, 3, 4]


def labelled(root: pathlib.Path, flat_folder: pathlib.Path) -> str:
    """The images of a flat folder in two class folders."""
    for number, path in enumerate(find_images(flat_folder)):
        target = root / "ab"[number % 2] / pathlib.Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((flat_folder / path).read_bytes())
    return str(root)


class Clock:
    """Gives the next of the given seconds."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def __call__(self) -> float:
        return self.seconds.pop(0)


def measured(root: str, clock: Clock, calls: int) -> None:
    images = class_folders(pathlib.Path(root)).select([0])
    knn = OnlineKnn(TinyBackbone(), torch.device("cpu"), size=32, train=images, test=images, clock=clock)
    for _ in range(calls):
        assert knn() == {"knn/accuracy": 1.0}


def test_it_announces_what_it_takes_and_how_many_images(tmp_path, flat_folder, caplog):
    root = labelled(tmp_path / "labelled", flat_folder)
    settings = RunSettings(
        method="simclr", image_size=32, knn_train=root, knn_val=root, knn_every=7, knn_images=4
    )
    with caplog.at_level(logging.INFO):
        knn = OnlineKnn.from_settings(settings, TinyBackbone(), World())
        assert knn is not None
        assert [len(knn.train), len(knn.test)] == [4, 4]
        knn()
    some = f"4 of {len(find_images(flat_folder))} images"
    assert f"every 7 steps, while training waits: {some} against {some}" in caplog.text
    assert "the online kNN takes" in caplog.text


def test_a_knn_that_takes_most_of_the_time_warns_once(tmp_path, flat_folder, caplog):
    folder = labelled(tmp_path / "labelled", flat_folder)
    # 35 s each, every 100 s: the first call, before anything is trained, does not count
    with caplog.at_level(logging.INFO):
        measured(folder, Clock(0, 35, 100, 135, 200, 235), calls=3)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "takes 35 % of the time (35.0 s each)" in warnings[0]
    assert "knn_every" in warnings[0]
    assert "knn_images" in warnings[0]


def test_a_cheap_knn_warns_of_nothing(tmp_path, flat_folder, caplog):
    with caplog.at_level(logging.INFO):
        measured(labelled(tmp_path / "labelled", flat_folder), Clock(0, 5, 100, 105), calls=2)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_the_row_before_the_first_step_had_batchnorm_that_no_training_keeps(
    tmp_path, flat_folder, monkeypatch
):
    images = class_folders(pathlib.Path(labelled(tmp_path / "labelled", flat_folder)))
    backbone = split_batch_norm(build_backbone("resnet18", image_size=32), 2).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    measured_means = []

    def look(measured, images, **_):
        measured_means.append(measured.state_dict()["trunk.bn1.running_mean"].clone())
        return Features(torch.randn(len(images), 2), torch.tensor(images.labels))

    monkeypatch.setattr(online_knn, "extract_features", look)
    knn = OnlineKnn(backbone, torch.device("cpu"), size=32, train=images, test=images)
    knn()
    assert measured_means[0].abs().sum() > 0  # of a copy, whose statistics are those of images
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.training
    backbone(torch.randn(4, 3, 32, 32))  # a step
    assert not is_untouched(backbone)
    knn()
    assert torch.equal(measured_means[-1], backbone.state_dict()["trunk.bn1.running_mean"])

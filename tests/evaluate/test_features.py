"""Features that several evaluations share: every image is read once, and no backbone is taken for another."""

from pathlib import Path

import pytest
from evaluations import Pyramid

from hapicl.data.images.class_folders import class_folders
from hapicl.evaluate.classification.knn import PROTOCOLS as KNN
from hapicl.evaluate.classification.knn import evaluate_knn
from hapicl.evaluate.classification.linear import PROTOCOLS as LINEAR
from hapicl.evaluate.classification.linear import evaluate_linear
from hapicl.evaluate.classification.vectors import features
from hapicl.evaluate.features import FeatureStore, frozen_vectors
from hapicl.evaluate.result import Outcome
from hapicl.evaluate.settings import Runtime
from hapicl.models import features as reading
from hapicl.models.backbones.build import build_backbone

SIDE, IMAGES = 32, 24 + 12  # training and test images


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every image file that is decoded."""
    read, found = reading.read_image, []

    def count(path: Path, **options: object) -> object:
        found.append(path)
        return read(path, **options)

    monkeypatch.setattr(reading, "read_image", count)
    return found


def both(folder: Path, runtime: Runtime) -> tuple[Outcome, Outcome]:
    """KNN and the cached linear probe."""
    train = class_folders(folder / "train")
    test = class_folders(folder / "test", train.classes)
    known, asked = (
        features(Pyramid(), images, image_size=SIDE, vector="mean", runtime=runtime, what="")
        for images in (train, test)
    )
    cached = LINEAR["linear-moco-cached"].replace(image_size=SIDE, epochs=2, batch_size=12)
    return (
        evaluate_knn(known, asked, train.classes, KNN["knn-dino"]),
        evaluate_linear(Pyramid(), train, test, cached, seed=0, runtime=runtime),
    )


def test_knn_and_the_cached_probe_decoded_every_image_twice(colour_folders: Path, reads: list[Path]) -> None:
    expected = both(colour_folders, Runtime())
    assert len(reads) == 2 * IMAGES
    reads.clear()
    assert both(colour_folders, Runtime(store=FeatureStore())) == expected
    assert len(reads) == IMAGES


def test_two_vectors_of_one_backbone_are_read_together(colour_folders: Path, reads: list[Path]) -> None:
    runtime = Runtime(store=FeatureStore())
    train = class_folders(colour_folders / "train")
    backbone = build_backbone("vit_tiny_patch16_224", image_size=SIDE)
    token, mean = (
        features(backbone, train, image_size=SIDE, vector=vector, runtime=runtime, what="")
        for vector in ("class", "mean")
    )
    assert len(reads) == len(train)
    assert token.values.shape == mean.values.shape
    assert not token.values.equal(mean.values)


@pytest.mark.parametrize("changed", ["weight", "running_mean"])
def test_a_backbone_is_not_taken_for_another(colour_folders: Path, changed: str) -> None:
    store, train, backbone = FeatureStore(), class_folders(colour_folders / "train"), Pyramid()
    runtime = Runtime(store=store)
    before = features(backbone, train, image_size=SIDE, vector="mean", runtime=runtime, what="")
    getattr(backbone.blocks["layer1"][1], changed).data.add_(0.5)
    after = features(backbone, train, image_size=SIDE, vector="mean", runtime=runtime, what="")
    assert not before.values.equal(after.values)


def test_without_a_store_nothing_is_kept(colour_folders: Path, reads: list[Path]) -> None:
    train = class_folders(colour_folders / "train")
    for _ in range(2):
        frozen_vectors(
            Pyramid(),
            train,
            image_size=SIDE,
            vectors=("mean",),
            progress=lambda total: Runtime().progress("", total),
        )
    assert len(reads) == 2 * len(train)

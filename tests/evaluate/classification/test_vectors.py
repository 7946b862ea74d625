"""Which vector stands for an image: what the method of the weights trained, the user's choice before it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_vit import SMALL, batch_for, small_method

from hapicl.common.errors import UserError
from hapicl.data.images.class_folders import class_folders
from hapicl.evaluate.classification.knn import PROTOCOLS
from hapicl.evaluate.classification.run import knn_task, linear_task, semi_task, svm_task
from hapicl.evaluate.classification.vectors import evaluation_vectors, measure_vectors
from hapicl.evaluate.measure import measure
from hapicl.evaluate.result import Outcome
from hapicl.evaluate.segmentation.data import hold_out, paired_folders, with_classes
from hapicl.evaluate.segmentation.protocols import ProbeProtocol
from hapicl.evaluate.segmentation.segment import evaluate_segmentation
from hapicl.evaluate.settings import Request, Runtime
from hapicl.models.backbones.build import build_backbone
from hapicl.models.features import extract_features
from hapicl.models.knn import knn_accuracy
from hapicl.models.weights import load_backbone
from hapicl.pretrain.methods.registry import METHODS, method_class

ARCH, SIZE = "vit_tiny_patch16_224", 32


def weight_file(folder: Path, method: str, arch: str = ARCH) -> str:
    """Random weights as a run of that method would leave them."""
    torch.manual_seed(0)
    backbone = build_backbone(arch, image_size=SIZE)
    path = folder / f"{method}.safetensors"
    state = {name: value.contiguous() for name, value in backbone.export_state().items()}
    about = {"arch": arch, "method": method, "stem": backbone.stem, "image_size": str(SIZE)}
    save_file(state, path, metadata=about)
    return str(path)


def knn(folder: Path, weights: str, **changes: str) -> dict[str, object]:
    """Result of kNN with 3 neighbours on colours."""
    request = Request(
        weights=weights,
        protocol="knn-dino",
        image_size=SIZE,
        changes={"k": "3", **changes},
        say=lambda text: None,
    )
    return measure(request, knn_task(request, train=folder / "train", test=folder / "test"))[0]


@pytest.mark.parametrize(
    ("method", "vectors"),
    [
        ("moco_v3", ["class"]),
        ("hapicl_vit", ["class", "mean"]),
        ("mae", ["mean"]),
        ("siameseim", ["mean"]),
        ("another toolkit's", ["mean"]),
    ],
)
def test_moco_v3_was_measured_on_mean_patches_though_it_trains_the_class_token(
    method: str, vectors: list[str], colour_folders: Path, tmp_path: Path
) -> None:
    result = knn(colour_folders, weight_file(tmp_path, method))
    run = result["runs"][0]  # type: ignore[index]
    assert list(run["vectors"]) == vectors
    backbone, _ = load_backbone(weight_file(tmp_path, method), image_size=SIZE)
    train, test = (class_folders(colour_folders / part) for part in ("train", "test"))
    for name, vector in zip(("top1", f"top1_{vectors[-1]}"), vectors, strict=False):
        one, other = (
            extract_features(backbone, images, image_size=SIZE, vector=vector)  # type: ignore[arg-type]
            for images in (train, test)
        )
        expected = knn_accuracy(one.values, one.labels, other.values, other.labels, k=3)
        assert run["metrics"][name] == pytest.approx(expected)
    assert len(run["metrics"]) == len(vectors)


def test_the_user_can_choose_the_vector(colour_folders: Path, tmp_path: Path) -> None:
    weights = weight_file(tmp_path, "moco_v3")
    assert list(knn(colour_folders, weights, vector="mean")["runs"][0]["vectors"]) == ["mean"]  # type: ignore[index]
    with pytest.raises(UserError, match="no class token"):
        knn(colour_folders, weight_file(tmp_path, "moco_v2", "resnet18"), vector="class")


def test_a_resnet_of_moco_v3_has_its_mean_only(tmp_path: Path) -> None:
    backbone, info = load_backbone(weight_file(tmp_path, "moco_v3", "resnet18"), image_size=SIZE)
    assert info.method == "moco_v3"
    assert evaluation_vectors(PROTOCOLS["knn-dino"], info, backbone) == ("mean",)


def test_both_vectors_are_classified_by_trainings_of_their_own(colour_folders: Path, tmp_path: Path) -> None:
    request = Request(
        weights=weight_file(tmp_path, "hapicl_vit"),
        protocol="linear-moco-cached",
        image_size=SIZE,
        changes={"epochs": "2", "batch_size": "8"},
        runtime=Runtime(folder=tmp_path / "runs"),
        say=lambda text: None,
    )
    task = linear_task(request, train=colour_folders / "train", test=colour_folders / "test")
    result, _ = measure(request, task)
    assert set(result["mean"]) == {"top1", "top1_mean"}
    assert (tmp_path / "runs/seed0/last.pt").is_file()
    assert (tmp_path / "runs/mean/seed0/last.pt").is_file()


def test_metrics_of_further_vectors_carry_their_name() -> None:
    outcome = measure_vectors(
        ("class", "mean"), lambda vector: Outcome(metrics={"top1": {"class": 0.2, "mean": 0.4}[vector]})
    )
    assert outcome.metrics == {"top1": 0.2, "top1_mean": 0.4}


def test_segmentation_reads_patches_whatever_the_method(halves: Path, tmp_path: Path) -> None:
    data = with_classes(*hold_out(paired_folders(halves / "images", halves / "labels", void=9), 0.25), None)
    protocol = ProbeProtocol(height=32, width=32, steps=2, batch_size=4)
    found = [
        evaluate_segmentation(
            load_backbone(weight_file(tmp_path, method), image_size=SIZE)[0],
            *data,
            protocol,
            seed=0,
            runtime=Runtime(),
        ).metrics
        for method in ("moco_v3", "mae")
    ]
    assert found[0] == found[1]


def test_every_method_names_vectors_that_there_are() -> None:
    for name in METHODS:
        vectors = method_class(name).evaluation_vectors
        assert vectors
        assert set(vectors) <= {"mean", "class"}


@pytest.mark.parametrize("name", SMALL)
def test_the_vectors_a_method_names_are_those_its_loss_reaches(name: str) -> None:
    method = small_method(name)
    given: list[torch.Tensor] = []

    def keep(module: object, inputs: object, tokens: torch.Tensor) -> None:
        if tokens.requires_grad:
            tokens.retain_grad()
            given.append(tokens)

    method.backbone.trunk.norm.register_forward_hook(keep)  # type: ignore[union-attr]
    method(batch_for(method)).loss.backward()
    gradients = [tokens.grad for tokens in given if tokens.grad is not None]
    reached = {
        "class": any(gradient[:, 0].abs().max() > 0 for gradient in gradients),
        "mean": any(gradient[:, 1:].abs().max() > 0 for gradient in gradients),
    }
    assert all(reached[vector] for vector in method.evaluation_vectors)
    if name == "moco_v3":  # no other loss leaves one of the two out
        assert reached == {"class": True, "mean": False}


def blind_class_token(folder: Path, method: str) -> str:
    """Weights whose class token is the same for every image, while the patches carry their colours."""
    arch = "test_vit"
    path = weight_file(folder, method, arch)
    state = load_file(path)
    for name, value in state.items():
        if name.endswith("attn.proj.weight"):  # no token hears of another
            value.zero_()
    about = {"arch": arch, "method": method, "stem": "patch16", "image_size": str(SIZE)}
    save_file(state, path, metadata=about)
    return path


@pytest.mark.parametrize("protocol", ["knn-dino", "linear-moco-cached", "logistic-1pct", "svm-voc07"])
@pytest.mark.parametrize(("method", "sees"), [("moco_v3", False), ("mae", True)])
def test_every_command_reads_the_vector_of_the_method(
    protocol: str, method: str, sees: bool, colour_folders: Path, tmp_path: Path
) -> None:
    folders = {"train": colour_folders / "train", "test": colour_folders / "test"}
    changes = {
        "knn-dino": {"k": "3"},
        "linear-moco-cached": {"batch_size": "8", "epochs": "10"},
        "svm-voc07": {"costs": "[1.0]", "folds": "1"},
    }
    request = Request(
        weights=blind_class_token(tmp_path, method),
        protocol=protocol,
        image_size=SIZE,
        changes=changes.get(protocol, {}),
        say=lambda text: None,
    )
    if protocol == "logistic-1pct":
        task = semi_task(request, **folders, list_file=None, fraction=0.99)
    elif protocol == "svm-voc07":
        task = svm_task(request, **folders, voc=None, splits=("", ""))
    else:
        task = {"knn-dino": knn_task, "linear-moco-cached": linear_task}[protocol](request, **folders)
    result = measure(request, task)[0]
    score = result["mean"][result["headline"]]
    # a ranking of equal scores is that of the files, whose mean AP is .6; the other commands give one third
    assert score > 0.9 if sees else score < 0.7

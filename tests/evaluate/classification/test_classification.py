"""kNN, linear, few labels and SVM on colours: a random network tells them apart, so the answer is 1."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hapicl.common.errors import UserError
from hapicl.data.images.class_folders import class_folders, fraction_per_class, listed
from hapicl.evaluate.classification import knn, linear, semi, svm
from hapicl.evaluate.settings import Runtime, change
from hapicl.models.backbones.base import Backbone
from hapicl.models.features import Features, extract_features
from hapicl.models.weights import load_backbone

SIZE = 32
# three clusters far apart on the sphere, and the class of each row
CLUSTERS = Features(torch.eye(3).repeat_interleave(4, 0) + 0.05, torch.arange(3).repeat_interleave(4))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("random", arch="resnet18", stem="no_pool", image_size=SIZE)[0]


def test_folders_are_read_sorted_with_their_classes(colour_folders: Path) -> None:
    images = class_folders(colour_folders / "train")
    assert images.classes == ("blue", "green", "red")
    assert len(images) == 24
    assert list(images.labels) == sorted(images.labels)


def test_folder_mistakes_are_named(tmp_path: Path, colour_folders: Path) -> None:
    with pytest.raises(UserError):
        class_folders(tmp_path)
    with pytest.raises(UserError, match="is no class of the training folder"):
        class_folders(colour_folders / "test", ("blue", "green"))
    one = tmp_path / "one" / "blue"
    one.mkdir(parents=True)
    (one / "a.png").write_bytes((colour_folders / "test/blue/blue0.png").read_bytes())
    with pytest.raises(UserError, match="needs at least two"):
        class_folders(tmp_path / "one")
    (tmp_path / "one" / "loose.png").write_bytes((one / "a.png").read_bytes())
    with pytest.raises(UserError, match="lies in no class folder"):
        class_folders(tmp_path / "one")


def test_lists_take_paths_and_names(tmp_path: Path, colour_folders: Path) -> None:
    images = class_folders(colour_folders / "train")
    (tmp_path / "list.txt").write_text("red0.png\nblue/blue3.png\n\n")
    few = listed(images, tmp_path / "list.txt")
    assert few.paths == ("blue/blue3.png", "red/red0.png")
    assert few.labels == (0, 2)
    (tmp_path / "list.txt").write_text("red0.png\npurple.png\n")
    with pytest.raises(UserError, match=r"list\.txt: 'purple\.png'"):
        listed(images, tmp_path / "list.txt")


def test_a_share_keeps_every_class(colour_folders: Path) -> None:
    few = fraction_per_class(class_folders(colour_folders / "train"), 0.01, seed=3)
    assert few.labels == (0, 1, 2)


def test_features_are_the_mean_over_the_map(backbone: Backbone, colour_folders: Path) -> None:
    images = class_folders(colour_folders / "test")
    whole = extract_features(backbone, images, image_size=SIZE, batch_size=5)
    assert whole.values.shape == (12, 512)
    single = extract_features(backbone, images.select([7]), image_size=SIZE)
    torch.testing.assert_close(single.values[0], whole.values[7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["knn-dino", "knn-instdisc"])
def test_knn_finds_clusters(name: str) -> None:
    protocol = change(knn.PROTOCOLS[name], {"k": "4"})
    outcome = knn.evaluate_knn(CLUSTERS, CLUSTERS, ("a", "b", "c"), protocol)
    assert outcome.metrics == {"top1": 1.0}
    assert outcome.confusion == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]


def test_knn_vote_by_hand() -> None:
    # one neighbour of class 0 at cosine 1 against two of class 1 at cosine 0:
    # exp(1 / T) > 2 exp(0) exactly when T < 1 / ln 2
    train = Features(torch.tensor([[1.0, 0], [0, 1], [0, -1]]), torch.tensor([0, 1, 1]))
    test = Features(torch.tensor([[1.0, 0]]), torch.tensor([0]))
    for temperature, expected in ((1.4, 1.0), (1.5, 0.0)):
        protocol = knn.KnnProtocol(k=3, temperature=temperature)
        assert knn.evaluate_knn(train, test, ("a", "b"), protocol).metrics["top1"] == expected


def test_knn_refuses_more_neighbours_than_images() -> None:
    with pytest.raises(UserError, match="k = 20 neighbours, but there are 12"):
        knn.evaluate_knn(CLUSTERS, CLUSTERS, ("a", "b", "c"), knn.PROTOCOLS["knn-dino"])


def test_top5_and_absent_classes() -> None:
    scores = torch.eye(6)[[0, 1, 2]].roll(1, 1)  # the best is always the next class
    outcome = knn.classification_outcome(scores, torch.tensor([0, 1, 2]), tuple("abcdef"))
    assert outcome.metrics["top1"] == 0.0
    assert outcome.per_class["a"] == 0.0
    assert outcome.per_class["f"] is None


@pytest.mark.parametrize("name", ["linear-moco", "linear-moco-cached", "linear-mae"])
def test_linear_classifiers_learn_colours(name: str, backbone: Backbone, colour_folders: Path) -> None:
    train, test = class_folders(colour_folders / "train"), class_folders(colour_folders / "test")
    changes = {"image_size": str(SIZE), "epochs": "12", "batch_size": "12", "base_lr": "20"}
    if name == "linear-mae":  # LARS moves a weight by a thousandth of itself times the rate
        changes |= {"base_lr": "200", "warmup_epochs": "0", "epochs": "30"}
    protocol = change(linear.PROTOCOLS[name], changes)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    outcome = linear.evaluate_linear(backbone, train, test, protocol, seed=0, runtime=Runtime())
    assert outcome.metrics["top1"] == 1.0
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_fine_tuning_on_few_labels_moves_the_backbone(colour_folders: Path) -> None:
    own = load_backbone("random", arch="resnet18", stem="no_pool", image_size=SIZE)[0]
    before = own.export_state()["conv1.weight"].clone()
    train, test = class_folders(colour_folders / "train"), class_folders(colour_folders / "test")
    few = fraction_per_class(train, 0.5, seed=0)
    protocol = change(
        semi.PROTOCOLS["semi-finetune"],
        {"image_size": str(SIZE), "epochs": "15", "batch_size": "12", "base_lr": "0.2"},
    )
    outcome = semi.evaluate_semi(own, few, test, protocol, seed=0, runtime=Runtime())
    assert outcome.metrics["top1"] >= 0.9
    assert not torch.equal(own.export_state()["conv1.weight"], before)


def test_logistic_regression_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.normal(size=(30, 5)).astype(np.float32))
    labels = torch.arange(30) % 3
    protocol = semi.LogisticProtocol(inverse_regularisations=(1.0,))
    scores = semi.logistic_scores(Features(values, labels), Features(values, labels), 4, protocol)
    unit = (values / values.norm(dim=1, keepdim=True)).numpy()
    plain = LogisticRegression(C=1.0, max_iter=2000).fit(unit, labels.numpy())
    np.testing.assert_allclose(scores[:, :3], plain.predict_log_proba(unit), rtol=1e-4)
    assert torch.isinf(scores[:, 3]).all()  # a class nobody listed is never predicted


def test_logistic_protocol_on_colours(backbone: Backbone, colour_folders: Path) -> None:
    train, test = class_folders(colour_folders / "train"), class_folders(colour_folders / "test")
    protocol = change(semi.PROTOCOLS["logistic-1pct"], {"image_size": str(SIZE)})
    few = fraction_per_class(train, 0.01, seed=0)
    outcome = semi.evaluate_semi(backbone, few, test, protocol, seed=0, runtime=Runtime())
    assert outcome.metrics["top1"] == 1.0


def test_svm_ranks_clusters_perfectly_and_skips_absent_classes() -> None:
    labels = np.where(CLUSTERS.labels[:, None].numpy() == np.arange(3), 1, -1).astype(np.int8)
    test_labels = labels.copy()
    test_labels[test_labels[:, 2] == 1, 2] = 0  # difficult: no positive is left
    values = CLUSTERS.values.numpy()
    outcome = svm.evaluate_svm(
        values,
        svm.MultiLabels(labels, ("a", "b", "c")),
        values,
        svm.MultiLabels(test_labels, ("a", "b", "c")),
        svm.PROTOCOLS["svm-voc07"],
        seed=0,
    )
    assert outcome.metrics == {"map": 1.0}
    assert outcome.per_class == {"a": 1.0, "b": 1.0, "c": None}


def test_low_shot_draws_k_positives_by_seed() -> None:
    labels = np.asarray([1] * 10 + [-1] * 40 + [0] * 5, np.int8)
    chosen = svm._few(labels, 3, 6, seed=0, number=0)
    assert (labels[chosen] == 1).sum() == 3
    assert (labels[chosen] == -1).sum() == 6
    assert not np.array_equal(chosen, svm._few(labels, 3, 6, seed=1, number=0))


def test_voc_classification_lists(tmp_path: Path, colour_folders: Path) -> None:
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    for name in ("x", "y"):
        source = colour_folders / "test/red/red0.png"
        (tmp_path / f"JPEGImages/{name}.jpg").write_bytes(source.read_bytes())
    (tmp_path / "ImageSets/Main/cat_test.txt").write_text("x  1\ny -1\n")
    (tmp_path / "ImageSets/Main/dog_test.txt").write_text("x  0\ny  1\n")
    images, labels = svm.voc_labels(tmp_path, "test")
    assert images.paths == ("x.jpg", "y.jpg")
    assert labels.classes == ("cat", "dog")
    assert labels.values.tolist() == [[1, 0], [-1, 1]]
    (tmp_path / "ImageSets/Main/dog_test.txt").write_text("x 7\n")
    with pytest.raises(UserError, match=r"dog_test\.txt: want .* not 'x 7'"):
        svm.voc_labels(tmp_path, "test")


def test_settings_are_changed_by_name_and_type() -> None:
    protocol = change(linear.PROTOCOLS["linear-moco"], {"epochs": "3", "base_lr": "1"})
    assert (protocol.epochs, protocol.base_lr) == (3, 1.0)
    with pytest.raises(UserError, match="did you mean epochs"):
        change(linear.PROTOCOLS["linear-moco"], {"epoch": "3"})
    for name, text in (
        ("epochs", "many"),
        ("epochs", "1.5"),
        ("epochs", "0"),
        ("base_lr", "nan"),
        ("optimizer", "adam"),
        ("weight_decay", "-1"),
    ):
        with pytest.raises(UserError, match=f"setting {name}: "):
            change(linear.PROTOCOLS["linear-moco"], {name: text})

"""kNN against a plain loop and on features whose classes are known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hapicl.common.errors import UserError
from hapicl.models.knn import centre_view, centre_views, knn_accuracy, knn_scores, labelled_folder


def plain_votes(features, labels, query, classes, k, temperature):
    """The vote of one query, neighbour by neighbour."""
    similarity = [float(row @ query / (row.norm() * query.norm())) for row in features]
    votes = [0.0] * classes
    for row in sorted(range(len(features)), key=lambda row: -similarity[row])[:k]:
        votes[int(labels[row])] += math.exp(similarity[row] / temperature)
    return votes


@pytest.mark.parametrize("k", [1, 5, 100])
def test_votes_are_those_of_a_plain_loop(k):
    torch.manual_seed(0)
    features, labels, queries = torch.randn(30, 6), torch.randint(4, (30,)), torch.randn(7, 6)
    expected = [plain_votes(features, labels, query, 4, k, 0.07) for query in queries]
    scores = knn_scores(features, labels, queries, classes=4, k=k, chunk=3)
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_separate_clusters_are_found_and_noise_is_at_chance():
    torch.manual_seed(0)
    centres = torch.randn(5, 16)
    labels = torch.arange(5).repeat(20)
    near = centres[labels] + 0.05 * torch.randn(100, 16)
    assert knn_accuracy(near, labels, near + 0.01, labels) == 1.0
    noise = torch.randn(2000, 16)
    chance = knn_accuracy(noise, torch.randint(5, (2000,)), torch.randn(2000, 16), torch.randint(5, (2000,)))
    assert chance == pytest.approx(0.2, abs=0.05)


def test_no_training_rows_are_refused():
    with pytest.raises(ValueError, match="0 training rows"):
        knn_scores(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), torch.ones(1, 3), classes=2)


def test_a_labelled_folder_gives_classes_by_name(tmp_path):
    for place in ("cat/a.png", "dog/deep/b.png", "cat/c.png", "stray.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30)).save(tmp_path / place)
    paths, labels, names = labelled_folder(tmp_path)
    assert (paths, labels.tolist(), names) == (
        ["cat/a.png", "cat/c.png", "dog/deep/b.png"],
        [0, 0, 1],
        ["cat", "dog"],
    )
    shapes = [tuple(batch.shape) for batch in centre_views(tmp_path, paths, size=16, batch_size=2)]
    assert shapes == [(2, 3, 16, 16), (1, 3, 16, 16)]
    with pytest.raises(UserError, match="holds no class folders"):
        labelled_folder(tmp_path / "cat")


def test_the_centre_view_is_the_centre_normalised():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 48:80] = 255  # a white band in the middle
    view = centre_view(pixels, 56)
    assert view.shape == (3, 56, 56)
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(view[:, 28, 28], white)
    assert view[0, 28, 2] < 0

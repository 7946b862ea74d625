"""kNN against a plain loop and on features whose classes are known."""

import math

import pytest
import torch

from hapicl.models.knn import knn_accuracy, knn_scores


def plain_votes(features, labels, query, classes, k, temperature):
    """The vote of one query, neighbour by neighbour."""
    similarity = [float(row @ query / (row.norm() * query.norm())) for row in features]
    votes = [0.0] * classes
    nearest = max(similarity)
    for row in sorted(range(len(features)), key=lambda row: -similarity[row])[:k]:
        votes[int(labels[row])] += math.exp((similarity[row] - nearest) / temperature)
    return votes


@pytest.mark.parametrize("k", [1, 5, 100])
def test_votes_are_those_of_a_plain_loop(k):
    torch.manual_seed(0)
    features, labels, queries = torch.randn(30, 6), torch.randint(4, (30,)), torch.randn(7, 6)
    expected = [plain_votes(features, labels, query, 4, k, 0.07) for query in queries]
    scores = knn_scores(features, labels, queries, classes=4, k=k, chunk=3)
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_a_tiny_temperature_leaves_the_nearest_row_instead_of_infinities():
    features, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.2]]), torch.tensor([1, 0, 0])
    scores = knn_scores(features, labels, torch.tensor([[1.0, 0.0]]), classes=2, k=3, temperature=1e-6)
    assert scores.tolist() == [[0.0, 1.0]]


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

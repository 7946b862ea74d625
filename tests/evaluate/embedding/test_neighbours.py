"""Neighbours and near-duplicates against a plain loop."""

import pytest
import torch

from hapicl.evaluate.embedding import neighbours
from hapicl.evaluate.embedding.neighbours import near_duplicates, nearest


def test_the_nearest_are_never_the_image_itself() -> None:
    vectors = torch.randn(9, 5)
    cosine = torch.nn.functional.cosine_similarity
    values, rows = nearest(vectors, [2, 7], 3)
    for place, query in enumerate((2, 7)):
        others = [row for row in range(9) if row != query]
        expected = sorted(others, key=lambda row: -float(cosine(vectors[query], vectors[row], dim=0)))[:3]
        assert rows[place].tolist() == expected
        torch.testing.assert_close(values[place, 0], cosine(vectors[query], vectors[expected[0]], dim=0))
    assert nearest(vectors[:2], [0], 8)[1].tolist() == [[1]]


def test_pairs_are_those_of_a_plain_loop_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.randn(30, 3)
    cosine = torch.nn.functional.cosine_similarity
    expected = {
        (first, second)
        for first in range(30)
        for second in range(first + 1, 30)
        if cosine(vectors[first], vectors[second], dim=0) > 0.9
    }
    assert expected
    for chunk in (4, 1024):
        monkeypatch.setattr(neighbours, "CHUNK", chunk)
        found = near_duplicates(vectors, 0.9)
        assert {pair[:2] for pair in found.pairs} == expected
        assert found.count == len(expected)
        values = [pair[2] for pair in found.pairs]
        assert values == sorted(values, reverse=True)
        fewer = near_duplicates(vectors, 0.9, most=2)
        assert [pair[:2] for pair in fewer.pairs] == [pair[:2] for pair in found.pairs[:2]]
        assert fewer.count == len(expected)

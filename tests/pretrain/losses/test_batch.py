"""InfoNCE within a batch: a plain loop, its closed forms, the place of a process, no gradient to keys."""

import math

import pytest
import torch

from hapicl.pretrain.losses.batch import batch_info_nce


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("first", [0, 2, 4])
def test_against_a_loop(first: int) -> None:
    query, keys = normal(3, 5, seed=0), normal(7, 5, seed=1)
    total = 0.0
    for row in range(3):
        scores = [math.exp(torch.cosine_similarity(query[row], key, dim=0).item() / 0.3) for key in keys]
        total += -math.log(scores[first + row] / sum(scores))
    loss = batch_info_nce(query, keys, temperature=0.3, first=first)
    assert loss.item() == pytest.approx(total / 3)


def test_equal_similarities_give_log_of_the_keys() -> None:
    loss = batch_info_nce(torch.ones(4, 3), torch.ones(9, 3), temperature=0.2)
    assert loss.item() == pytest.approx(math.log(9))


def test_the_length_of_an_embedding_does_not_matter() -> None:
    query, keys = normal(3, 5, seed=0), normal(3, 5, seed=1)
    scaled = batch_info_nce(7 * query, 0.1 * keys, temperature=0.2)
    torch.testing.assert_close(scaled, batch_info_nce(query, keys, temperature=0.2))


def test_no_gradient_reaches_the_keys() -> None:
    query, keys = normal(3, 5, seed=0).requires_grad_(), normal(3, 5, seed=1).requires_grad_()
    batch_info_nce(query, keys, temperature=0.2).backward()
    assert keys.grad is None
    assert query.grad.abs().sum() > 0

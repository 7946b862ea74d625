from __future__ import annotations

import math

import pytest
import torch

from hapicl.pretrain.losses import dense_info_nce, match_cells


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_rows(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def test_agrees_with_the_original_numbers(golden_arrays):
    data = golden_arrays("densecl")
    query = data["query_dense"].requires_grad_()
    loss = float(data["loss_lambda"]) * dense_info_nce(
        query,
        data["key_dense"],
        data["query_backbone"],
        data["key_backbone"],
        data["queue_dense"].T,
        temperature=float(data["temperature"]),
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["loss_dense_weighted"], rtol=0, atol=1e-9)
    torch.testing.assert_close(query.grad, data["grad_query_dense"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk", [2**24, 30])
def test_agrees_with_a_loop(chunk):
    dense, key, features, others = (
        draw(2, 5, 4),
        draw(2, 5, 4, seed=1),
        draw(2, 6, 4, seed=2),
        draw(2, 6, 4, seed=3),
    )
    queue = unit_rows(draw(7, 5, seed=4))
    terms = []
    for b in range(2):
        for i in range(4):
            cosines = [torch.cosine_similarity(features[b, :, i], others[b, :, j], dim=0) for j in range(4)]
            match = int(torch.stack(cosines).argmax())
            g = dense[b, :, i] / dense[b, :, i].norm()
            positive = math.exp(float(g @ (key[b, :, match] / key[b, :, match].norm())) / 0.2)
            negative = sum(math.exp(float(g @ row) / 0.2) for row in queue)
            terms.append(-math.log(positive / (positive + negative)))
    loss = dense_info_nce(dense, key, features, others, queue, temperature=0.2, chunk_logits=chunk)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


def test_matches_by_backbone_features_not_by_the_head():
    features = torch.eye(4, dtype=torch.float64)[None]
    others = features[:, :, [2, 0, 3, 1]]
    match = match_cells(features, others)
    assert match.tolist() == [[1, 3, 0, 2]]
    dense = draw(1, 3, 4)
    by_features = dense_info_nce(dense, dense, features, others, unit_rows(draw(5, 3)), temperature=0.2)
    given = dense_info_nce(dense, dense, others, others, unit_rows(draw(5, 3)), temperature=0.2, match=match)
    torch.testing.assert_close(by_features, given, rtol=0, atol=0)


def test_many_cells_may_share_a_match_and_a_tie_takes_the_first():
    features = torch.ones(1, 2, 3, dtype=torch.float64)
    assert match_cells(features, features).tolist() == [[0, 0, 0]]


def test_allowed_pairs_restrict_the_match_and_a_row_without_any_is_free():
    features = torch.eye(3, dtype=torch.float64)[None]
    allowed = torch.tensor([[[False, True, True], [False, True, False], [False, False, False]]])
    assert match_cells(features, features, allowed).tolist() == [[1, 1, 2]]


def test_no_gradient_flows_into_keys_or_features():
    dense, key, features, others = (draw(2, 3, 4, seed=s).requires_grad_() for s in range(4))
    dense_info_nce(dense, key, features, others, unit_rows(draw(5, 3)), temperature=0.2).backward()
    assert dense.grad is not None
    assert key.grad is None
    assert features.grad is None
    assert others.grad is None


def test_closed_form_when_all_similarities_are_equal():
    ones = torch.ones(2, 3, 4, dtype=torch.float64)
    queue = unit_rows(torch.ones(10, 3, dtype=torch.float64))
    assert dense_info_nce(ones, ones, ones, ones, queue, temperature=0.2).item() == pytest.approx(
        math.log(11)
    )


def test_keeps_no_logits_for_the_backward_pass():
    """What autograd saves grows with the cells, not with cells x queue."""
    saved = []

    def pack(value):
        saved.append(value.numel())
        return value

    dense = draw(4, 8, 16).float().requires_grad_()
    queue = unit_rows(draw(5000, 8)).float()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        dense_info_nce(dense, dense.detach(), dense, dense.detach(), queue, temperature=0.2).backward()
    assert max(saved) <= max(dense.numel(), queue.numel())
    assert max(saved) < 4 * 16 * 5000 / 4

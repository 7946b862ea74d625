from __future__ import annotations

import math

import pytest
import torch

from hapicl.pretrain.losses import info_nce, negative_cosine, nt_xent


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_rows(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def test_nt_xent_agrees_with_the_original_numbers(golden_arrays):
    data = golden_arrays("nt_xent")
    z1, z2 = data["z1"].requires_grad_(), data["z2"].requires_grad_()
    loss = nt_xent(z1, z2, temperature=float(data["temperature"]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["loss"], rtol=0, atol=1e-9)
    torch.testing.assert_close(z1.grad, data["grad_z1"], rtol=0, atol=1e-9)
    torch.testing.assert_close(z2.grad, data["grad_z2"], rtol=0, atol=1e-9)


def test_nt_xent_agrees_with_a_loop():
    z1, z2 = draw(4, 6), draw(4, 6, seed=1)
    rows = unit_rows(torch.cat([z1, z2]))
    terms = []
    for i in range(8):
        scores = {j: math.exp(float(rows[i] @ rows[j]) / 0.3) for j in range(8) if j != i}
        terms.append(-math.log(scores[(i + 4) % 8] / sum(scores.values())))
    assert nt_xent(z1, z2, temperature=0.3).item() == pytest.approx(sum(terms) / 8, abs=1e-12)


@pytest.mark.parametrize("chunk", [30, 1])
def test_nt_xent_in_chunks_is_the_same_loss_and_gradient(chunk):
    z = draw(2, 5, 4)
    whole, parts = z.clone().requires_grad_(), z.clone().requires_grad_()
    loss = nt_xent(*whole, temperature=0.2)
    chunked = nt_xent(*parts, temperature=0.2, chunk_logits=chunk)
    loss.backward()
    chunked.backward()
    torch.testing.assert_close(chunked, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=0, atol=1e-12)


def test_nt_xent_is_symmetric_and_has_its_closed_form():
    z1, z2 = draw(5, 3), draw(5, 3, seed=1)
    there, back = nt_xent(z1, z2, temperature=0.2), nt_xent(z2, z1, temperature=0.2)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-12)
    same = torch.ones(5, 3, dtype=torch.float64)
    assert nt_xent(same, same, temperature=0.2).item() == pytest.approx(math.log(9))


def test_info_nce_agrees_with_the_original_numbers(golden_arrays):
    data = golden_arrays("densecl")
    query = data["query_global"].requires_grad_()
    weight = 1 - float(data["loss_lambda"])
    loss = weight * info_nce(
        query, data["key_global"], data["queue"].T, temperature=float(data["temperature"])
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["loss_global_weighted"], rtol=0, atol=1e-9)
    torch.testing.assert_close(query.grad, data["grad_query_global"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk", [2**24, 20, 1])
def test_info_nce_agrees_with_cross_entropy_whatever_the_chunks(chunk):
    query, key, queue = draw(6, 5), draw(6, 5, seed=1), unit_rows(draw(9, 5, seed=2))
    ours, theirs = query.clone().requires_grad_(), query.clone().requires_grad_()
    loss = info_nce(ours, key, queue, temperature=0.2, chunk_logits=chunk)
    normalised = unit_rows(theirs)
    logits = torch.cat([(normalised * unit_rows(key)).sum(1, keepdim=True), normalised @ queue.T], 1) / 0.2
    reference = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_info_nce_has_its_closed_form_and_no_gradient_into_keys():
    query = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    key = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    loss = info_nce(query, key, unit_rows(torch.ones(10, 4, dtype=torch.float64)), temperature=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(11))
    assert key.grad is None


def test_info_nce_takes_bfloat16_queries():
    query, key, queue = (value.float() for value in (draw(4, 8), draw(4, 8, seed=1), unit_rows(draw(6, 8))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = info_nce(query.bfloat16(), key.bfloat16(), queue, temperature=0.2)
    high = info_nce(query.bfloat16().float(), key.bfloat16().float(), queue, temperature=0.2)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=0, atol=0)


def test_negative_cosine_is_the_squared_distance_of_unit_vectors():
    prediction, target = draw(5, 4), draw(5, 4, seed=1)
    distance = (unit_rows(prediction) - unit_rows(target)).square().sum(dim=1).mean()
    torch.testing.assert_close(negative_cosine(prediction, target), distance, rtol=0, atol=1e-12)
    assert negative_cosine(prediction, 3 * prediction).item() == pytest.approx(0, abs=1e-12)

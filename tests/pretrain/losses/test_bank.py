from __future__ import annotations

import math

import pytest
import torch

from hapicl.pretrain.losses import bank as bank_module
from hapicl.pretrain.losses import bank_info_nce, bank_nce, bank_scores
from hapicl.pretrain.losses.bank import partition_estimate


def unit_rows(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def draw(batch=4, size=10, dim=6, negatives=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    bank = unit_rows(torch.randn(size, dim, generator=generator, dtype=torch.float64))
    index = torch.arange(batch)
    return embedding, bank, index, torch.randint(batch, size, (batch, negatives), generator=generator)


def test_agrees_with_the_original_numbers(golden_arrays):
    data = golden_arrays("pirl_infonce")
    temperature = float(data["temperature"])
    embeddings = [data["image_embedding"].requires_grad_(), data["patch_embedding"].requires_grad_()]
    losses = [
        bank_info_nce(value, data["bank"], data["index"], data["negatives"], temperature=temperature)
        for value in embeddings
    ]
    loss = (losses[0] + losses[1]) / 2
    loss.backward()
    torch.testing.assert_close(loss.detach(), data["loss"], rtol=0, atol=1e-9)
    for value, name in zip(embeddings, ("grad_image", "grad_patch"), strict=True):
        # the original does not normalise inside: ours has the part of its gradient tangential to the sphere
        l2_normalize = value.detach()
        tangential = data[name] - (data[name] * l2_normalize).sum(dim=1, keepdim=True) * l2_normalize
        torch.testing.assert_close(value.grad, tangential, rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk", [2**24, 1])
def test_infonce_agrees_with_a_loop_and_cross_entropy_gradients(monkeypatch, chunk):
    monkeypatch.setattr(bank_module, "CHUNK_LOGITS", chunk)
    embedding, bank, index, negatives = draw()
    ours, theirs = embedding.clone().requires_grad_(), embedding.clone().requires_grad_()
    loss = bank_info_nce(ours, bank, index, negatives, temperature=0.07)
    rows = unit_rows(theirs)
    terms = []
    for i in range(4):
        scores = torch.stack([rows[i] @ bank[j] for j in [int(index[i]), *negatives[i].tolist()]]) / 0.07
        terms.append(scores.logsumexp(0) - scores[0])
    reference = torch.stack(terms).mean()
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "negatives", "chunk", "whole"),
    [(128, 2, 1 << 24, True), (129, 2, 1 << 24, False), (128, 2, 3 * 128 - 1, False)],
)
def test_scores_are_the_same_whether_every_row_or_each_samples_own_are_multiplied(
    monkeypatch, rows, negatives, chunk, whole
):
    # 64 samples of PIRL against 8,192 of 13,000 rows took 1.2 seconds of a core, most of it for copies
    monkeypatch.setattr(bank_module, "CHUNK_LOGITS", chunk)
    copied = bank_module._GatheredScores.apply
    calls = []
    monkeypatch.setattr(
        bank_module._GatheredScores, "apply", lambda *given: calls.append(1) or copied(*given)
    )
    bank = torch.nn.functional.normalize(torch.randn(rows, 4, dtype=torch.float64), dim=1)
    drawn = torch.randint(rows, (3, negatives))
    drawn[0] = 5  # picked twice: both count
    embedding = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    scores = bank_module.bank_scores(embedding, bank, torch.arange(3), drawn)
    unit = torch.nn.functional.normalize(embedding, dim=1)
    expected = torch.einsum("bd,bkd->bk", unit, bank[torch.cat([torch.arange(3)[:, None], drawn], 1)])
    torch.testing.assert_close(scores, expected)
    weight = torch.randn_like(scores)
    found, wanted = (torch.autograd.grad((each * weight).sum(), embedding)[0] for each in (scores, expected))
    torch.testing.assert_close(found, wanted)
    assert bool(calls) is not whole


def test_nce_agrees_with_its_equations():
    embedding, bank, index, negatives = draw()
    rows = unit_rows(embedding)
    partition = torch.tensor(37.0, dtype=torch.float64)
    noise = 7 / 10
    terms = []
    for i in range(4):
        own = math.exp(float(rows[i] @ bank[index[i]]) / 0.3) / 37
        value = -math.log(own / (own + noise))
        for j in negatives[i].tolist():
            other = math.exp(float(rows[i] @ bank[j]) / 0.3) / 37
            value -= math.log(noise / (other + noise))
        terms.append(value)
    loss = bank_nce(embedding, bank, index, negatives, temperature=0.3, partition=partition)
    assert loss.item() == pytest.approx(sum(terms) / 4, abs=1e-10)


def test_nce_stays_finite_where_the_exponential_overflows():
    embedding = torch.eye(3, dtype=torch.float32).requires_grad_()
    loss = bank_nce(
        embedding,
        torch.eye(3),
        torch.arange(3),
        torch.tensor([[1, 2], [0, 2], [0, 1]]),
        temperature=0.001,
        partition=torch.tensor(1e30),
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embedding.grad).all()


def test_closed_form_when_all_similarities_are_equal():
    bank = unit_rows(torch.ones(6, 3, dtype=torch.float64))
    loss = bank_info_nce(bank[:2], bank, torch.arange(2), torch.full((2, 4), 5), temperature=0.07)
    assert loss.item() == pytest.approx(math.log(5))


def test_shared_negatives_score_as_each_samples_own_but_for_itself():
    embedding, bank, index, _ = draw()
    shared = torch.tensor([9, 2, 7])
    scores = bank_scores(embedding, bank, index, shared)
    each = bank_scores(embedding, bank, index, shared.expand(4, 3))
    assert scores[2, 2] == -math.inf  # sample 2 met its own row
    each[2, 2] = -math.inf
    torch.testing.assert_close(scores, each, rtol=0, atol=1e-12)


def test_partition_is_the_mean_exponential_times_the_bank():
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    expected = 50 * sum(math.exp(s / 0.5) for s in (0.1, 0.2, 0.3, 0.4)) / 4
    assert partition_estimate(scores, 50, temperature=0.5).item() == pytest.approx(expected)

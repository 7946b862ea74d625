"""UniGrad: the authors' numbers, plain loops, the collapse level, gradients that must not exist."""

import pathlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hapicl.pretrain.losses import tokens as losses


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_unigrad_agrees_with_the_authors_numbers(golden: pathlib.Path) -> None:
    numbers = np.load(golden / "siameseim_loss.npz")
    prediction = torch.from_numpy(numbers["prediction"]).requires_grad_()
    target = torch.from_numpy(numbers["target"])
    loss = losses.unigrad(prediction, target, neg_weight=float(numbers["neg_weight"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(numbers["loss"]), abs=1e-9)
    np.testing.assert_allclose(prediction.grad.numpy(), numbers["grad_prediction"], rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    images=st.integers(1, 4),
    tokens=st.integers(1, 5),
    dim=st.sampled_from([4, 8, 12]),
    weight=st.floats(0, 3),
    seed=st.integers(0, 1000),
)
def test_unigrad_equals_the_naive_pairwise_form(
    images: int, tokens: int, dim: int, weight: float, seed: int
) -> None:
    """The second term as all pairs of rows: sum over i, j of (p_i . t_j)^2 / M^2."""
    prediction = normal(images, tokens, dim, seed=seed).requires_grad_()
    target = normal(images, tokens, dim, seed=seed + 1)
    wanted = torch.nn.functional.layer_norm(target, (dim,))
    rows, targets = prediction.reshape(-1, dim), wanted.reshape(-1, dim)
    pairwise = (rows @ targets.T).square().mean()
    naive = ((rows - targets).square().sum(-1).mean() + weight * pairwise) / dim
    efficient = losses.unigrad(prediction, target, neg_weight=weight)
    torch.testing.assert_close(efficient, naive, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(efficient, prediction), torch.autograd.grad(naive, prediction)
    )


def test_unigrad_never_builds_a_rows_by_rows_matrix() -> None:
    """2048 rows in float32: pairwise numbers would take 16 MB, the tokens take 64 KB."""
    prediction, target = torch.randn(2, 1024, 8, requires_grad=True), torch.randn(2, 1024, 8)
    largest = 0

    def record(saved: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(record, lambda saved: saved):
        losses.unigrad(prediction, target, neg_weight=0.02).backward()
    assert 0 < largest <= prediction.numel()


@pytest.mark.parametrize("dim", [24, 48, 768])
def test_best_loss_at_a_collapse_is_the_collapse_level(dim: int) -> None:
    weight = losses.RELEASED_STRENGTH / dim
    level = losses.collapse_level(dim, weight)
    assert level == pytest.approx(15.36 / 16.36)  # 0.939
    # the unaffine LayerNorm's epsilon makes ||t||^2 fall a little short of D
    target = normal(1, 1, dim).expand(2, 6, dim) * 100
    token = losses.target_tokens(target)
    parts = losses.unigrad_parts(token / (1 + weight * dim), target, neg_weight=weight)
    assert parts.loss.item() == pytest.approx(level, abs=1e-6)
    assert parts.effective_rank.item() == pytest.approx(1)
    for nearby in (token * 0.05, token * 0.08, torch.zeros_like(token)):
        assert losses.unigrad(nearby, target, neg_weight=weight).item() > level


def test_cosine_form_collapses_at_its_level() -> None:
    target = normal(1, 6).expand(5, 6)
    unit = torch.nn.functional.normalize(target, dim=-1)
    moment = losses.second_moment(unit)
    across = torch.nn.functional.normalize(normal(1, 6, seed=1) - (normal(1, 6, seed=1) @ unit[0]) * unit[:1])
    level = losses.cosine_collapse_level(15.36)
    assert level == pytest.approx(-1 / (2 * 15.36))
    values = []
    for cosine in np.linspace(-1, 1, 401):
        prediction = cosine * unit + np.sqrt(1 - cosine**2) * across
        values.append(losses.unigrad_cosine(prediction, target, moment, strength=15.36).item())
    assert min(values) == pytest.approx(level, abs=1e-4)
    assert min(values) >= level - 1e-12
    assert losses.cosine_collapse_level(0.5) == pytest.approx(-1 + 0.25)


def test_cosine_form_against_a_loop() -> None:
    prediction, target = normal(7, 4), normal(7, 4, seed=1)
    moment = losses.second_moment(normal(9, 4, seed=2))
    total = 0.0
    for row, wanted in zip(prediction, target, strict=True):
        u, v = row / row.norm(), wanted / wanted.norm()
        total += float(-(u @ v) + 1.5 * u @ moment @ u)
    got = losses.unigrad_cosine(prediction, target, moment, strength=3.0)
    assert got.item() == pytest.approx(total / 7)


def test_effective_rank_counts_directions() -> None:
    assert losses.effective_rank(torch.eye(6)).item() == pytest.approx(6)
    assert losses.effective_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))).item() == pytest.approx(2)


def test_r2_is_one_for_a_perfect_prediction_and_zero_for_the_mean() -> None:
    target = normal(3, 4, 8)
    tokens = losses.target_tokens(target)
    mean = tokens.mean((0, 1)).expand_as(tokens)
    shrink = torch.eye(8, dtype=torch.float64) + 0.7 * losses.second_moment(tokens.flatten(0, 1))
    for estimate, fraction in ((tokens, 1.0), (mean, 0.0)):
        best = torch.linalg.solve(shrink, estimate.transpose(1, 2)).transpose(1, 2)
        assert losses.unigrad_parts(best, target, neg_weight=0.7).r2.item() == pytest.approx(fraction)


def test_the_loss_is_least_at_the_shrunk_estimate() -> None:
    target = normal(3, 4, 8)
    tokens = losses.target_tokens(target)
    shrink = torch.eye(8, dtype=torch.float64) + 0.7 * losses.second_moment(tokens.flatten(0, 1))
    best = torch.linalg.solve(shrink, tokens.transpose(1, 2)).transpose(1, 2).requires_grad_()
    losses.unigrad(best, target, neg_weight=0.7).backward()
    torch.testing.assert_close(best.grad, torch.zeros_like(best.grad))


def test_no_gradient_reaches_the_target() -> None:
    prediction, target = normal(2, 3, 8).requires_grad_(), normal(2, 3, 8, seed=1).requires_grad_()
    losses.unigrad(prediction, target, neg_weight=0.5).backward()
    losses.unigrad_cosine(prediction[0], target[0], torch.eye(8), strength=2.0).backward()
    assert target.grad is None
    assert prediction.grad.abs().sum() > 0


def test_half_precision_is_summed_in_float32() -> None:
    prediction, target = normal(2, 64, 16).bfloat16(), normal(2, 64, 16, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = losses.unigrad(prediction, target, neg_weight=0.5)
    assert got.dtype == torch.float32
    wanted = losses.unigrad(prediction.double(), target.double(), neg_weight=0.5)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)

"""UniGrad over token predictions in SiameseIM's two forms, and what tells a healthy run from a collapse.

Shape legend: B images, N tokens, M = B*N rows, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .common import l2_normalize, to_float32

# SiameseIM's released weight 0.02 belongs to D = 768; it scales with 1 / D, so this product is the constant
RELEASED_STRENGTH = 15.36

Average = Callable[[Tensor], Tensor]


class UnigradParts(NamedTuple):
    """The loss with the numbers worth logging, all scalars on the device; only `loss` carries a gradient."""

    loss: Tensor
    effective_rank: Tensor  # of C, in [1, D]
    # share of the targets' variance that p (1 + w C) explains: 1 for all, 0 for their mean, below when worse
    r2: Tensor


def target_tokens(target: Tensor) -> Tensor:
    """Bring target tokens to zero mean and unit variance: LayerNorm without affine, no gradient.

    Args:
        target: (..., D).

    Returns:
        (..., D) of at least float32.
    """
    detached = to_float32(target.detach())
    return functional.layer_norm(detached, detached.shape[-1:])


def second_moment(rows: Tensor) -> Tensor:
    """C = t^T t / M, without gradient and in float32 at least.

    Args:
        rows: (M, D).

    Returns:
        (D, D), symmetric.
    """
    with torch.autocast(rows.device.type, enabled=False):
        detached = to_float32(rows.detach())
        return detached.T @ detached / len(rows)


def effective_rank(moment: Tensor) -> Tensor:
    """How many directions share the variance: (tr C)^2 / tr(C^2), the participation ratio.

    1 when every row lies on one line, D when all directions weigh the same. Chosen over the entropy of the
    eigenvalues because it needs no decomposition, hence no wait for the device.

    Args:
        moment: (D, D), symmetric, not all zero.

    Returns:
        Scalar.
    """
    return moment.trace().square() / moment.square().sum().clamp_min(torch.finfo(moment.dtype).tiny)


def unigrad(
    prediction: Tensor, target: Tensor, *, neg_weight: float, average: Average | None = None
) -> Tensor:
    """SiameseIM's dense loss as published (arXiv 2206.01204, CVPR 2023).

    L = [ mean ||p - t||^2 + w mean(p^T C p) ] / D with t the target after LayerNorm and C = mean t t^T, taken
    as a constant. It is UniGrad (arXiv 2112.05141) with lambda = w D and an L2 pull.

    Args:
        prediction: (B, N, D), raw.
        target: (B, N, D), raw; gets no gradient.
        neg_weight: w; 0.02 at D = 768, and 15.36 / D for other widths.
        average: applied to C (D, D); under several processes their mean (`engine.distributed.reduce_mean`).

    Returns:
        Scalar of at least float32; `collapse_level` where every target is the same.
    """
    return unigrad_parts(prediction, target, neg_weight=neg_weight, average=average).loss


def unigrad_parts(
    prediction: Tensor, target: Tensor, *, neg_weight: float, average: Average | None = None
) -> UnigradParts:
    """`unigrad` with the effective rank of C and the prediction's R2."""
    dim = prediction.shape[-1]
    with torch.autocast(prediction.device.type, enabled=False):
        predicted = to_float32(prediction).reshape(-1, dim)
        wanted = target_tokens(target).reshape(-1, dim)
        moment = second_moment(wanted)
        moment = moment if average is None else average(moment).detach()
        distance = (predicted - wanted).square().sum(-1).mean()
        # (p C) . p row by row: M D + D^2 numbers, where p (t^T t) p formed pairwise takes M x M
        pulled = predicted @ moment
        energy = (pulled * predicted).sum(-1).mean()
        variance = (wanted - wanted.mean(0)).square().sum(-1).mean()
        # the loss is least at p = (1 + w C)^-1 E[t], so this is the prediction's own estimate of t
        estimate = (predicted + neg_weight * pulled).detach()
        missed = (estimate - wanted).square().sum(-1).mean()
        r2 = 1 - missed / variance.clamp_min(torch.finfo(variance.dtype).tiny)
        return UnigradParts((distance + neg_weight * energy) / dim, effective_rank(moment), r2)


def collapse_level(dim: int, neg_weight: float) -> float:
    """Best `unigrad` when every target is the same: w D / (1 + w D), 0.939 at the published weight.

    Then C = t t^T with ||t||^2 = D, and the best prediction is t / (1 + w D).
    """
    return neg_weight * dim / (1 + neg_weight * dim)


def unigrad_cosine(prediction: Tensor, target: Tensor, moment: Tensor, *, strength: float) -> Tensor:
    """UniGrad on unit vectors (arXiv 2112.05141), the form of SiameseIM's first version.

    L = mean(-u . v + strength / 2 * u^T F u), u and v unit vectors, F = an average of v v^T.

    Args:
        prediction: (M, D), raw.
        target: (M, D), raw; gets no gradient.
        moment: (D, D), F, a constant.
        strength: lambda.

    Returns:
        Scalar of at least float32; `cosine_collapse_level` where every target is the same.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        predicted = l2_normalize(prediction)
        wanted = l2_normalize(target.detach())
        constant = moment.detach().to(predicted.dtype)
        energy = ((predicted @ constant) * predicted).sum(-1)
        return (strength / 2 * energy - (predicted * wanted).sum(-1)).mean()


def cosine_collapse_level(strength: float) -> float:
    """Best `unigrad_cosine` when every target is the same: -c + lambda / 2 c^2 at its best cosine c."""
    best = min(1.0, 1 / strength) if strength > 0 else 1.0
    return strength / 2 * best**2 - best


def patch_scale(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased, never zero) of each patch, (B, N, n) to (B, N, 1) each."""
    values = to_float32(patches.detach())
    return values.mean(-1, keepdim=True), (values.var(-1, keepdim=True) + 1e-6).sqrt()


def normalised_patches(patches: Tensor) -> Tensor:
    """Bring each patch to zero mean and unit variance, as MAE does to its targets (arXiv 2111.06377, 3).

    Args:
        patches: (B, N, n) pixels.

    Returns:
        (B, N, n) of at least float32, without gradient; a patch of one colour becomes zero.
    """
    mean, deviation = patch_scale(patches)
    return (to_float32(patches.detach()) - mean) / deviation

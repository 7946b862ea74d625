"""The pixel loss of HAPiCL: cells of two views of one image attract within a mask label and repel across.

From the abstract of HAPiCLR (doi 10.1007/s00371-023-03217-x) and the authors' MIT code; where the two leave a
choice it is ours and said so. Shape legend: B images, D embedding, P cells, G occupancy cells per side.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .common import CHUNK_LOGITS, l2_normalize

# `image` and `anchor` are this project's; `image_released` and `batch_released` give the numbers of the
# authors' code, constants included.
PixelForm = Literal["image", "image_released", "batch_released", "anchor"]
PIXEL_FORMS: tuple[PixelForm, ...] = ("image", "image_released", "batch_released", "anchor")


class Pairs(NamedTuple):
    """Which cell pairs (B, P, P) of view 1 and view 2 attract and repel; ignored cells are in neither."""

    positive: Tensor
    negative: Tensor


def cell_labels(
    occupancy: Tensor,
    *,
    rule: Literal["area", "any"] = "area",
    threshold: float = 0.5,
    ignore: tuple[float, float] | None = None,
) -> Tensor:
    """Turn the share of foreground in each cell into a label.

    Args:
        occupancy: (B, G, G) in [0, 1].
        rule: `area`: foreground from `threshold` on; `any`: foreground when any of it is (the authors' rule,
            which dilates an object by about a cell).
        threshold: smallest occupancy that is foreground under `area`.
        ignore: (low, high): cells strictly between the two count as neither.

    Returns:
        (B, G*G) int8: 1 foreground, 0 background, -1 ignored.
    """
    cells = occupancy.flatten(1)
    labels = (cells > 0 if rule == "any" else cells >= threshold).to(torch.int8)
    if ignore is not None:
        labels = labels.masked_fill((cells > ignore[0]) & (cells < ignore[1]), -1)
    return labels


def cell_pairs(m1: Tensor, m2: Tensor, *, background_positives: bool = True) -> Pairs:
    """Pairs of one image: those within a mask label attract, those across repel.

    Args:
        m1, m2: (B, P) labels of two views: bool or 0/1; a negative value marks a cell to ignore.
        background_positives: whether background pairs attract; else they repel, as in the authors' code.
    """
    known = (m1 >= 0)[:, :, None] & (m2 >= 0)[:, None, :]
    front1, front2 = (m1 > 0)[:, :, None], (m2 > 0)[:, None, :]
    positive = front1 & front2
    if background_positives:
        positive = positive | (~front1 & ~front2)
    return Pairs(positive & known, ~positive & known)


def pixel_contrast(
    u1: Tensor,
    u2: Tensor,
    m1: Tensor,
    m2: Tensor,
    *,
    temperature: float = 0.2,
    form: PixelForm = "image",
    background_positives: bool = True,
    negatives: Literal["image", "batch"] = "image",
    valid: Tensor | None = None,
) -> Tensor:
    """Pixel loss of a batch: the mean of `pixel_terms` over the images that count, 0 when none does."""
    terms, counted = pixel_terms(
        u1,
        u2,
        m1,
        m2,
        temperature=temperature,
        form=form,
        background_positives=background_positives,
        negatives=negatives,
        valid=valid,
    )
    return terms.sum() / counted.sum().clamp(min=1)


def pixel_terms(
    u1: Tensor,
    u2: Tensor,
    m1: Tensor,
    m2: Tensor,
    *,
    temperature: float = 0.2,
    form: PixelForm = "image",
    background_positives: bool = True,
    negatives: Literal["image", "batch"] = "image",
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pixel loss of every image.

    With S+ and S- the sums of exp(cosine / temperature) over attracting and repelling pairs of an image:

    - `image`: -log(S+ / (S+ + S-)).
    - `image_released`: the same with 1 added to S+ and to S-.
    - `batch_released`: -log((S+ + 1e-5) / sum over the batch of (S+ + S-)).
    - `anchor`: mean over the cells of both views of the mean over the cell's positives of the cross-entropy
      of that positive against the cell's negatives; cells without either do not count.

    Args:
        u1, u2: (B, D, P) pixel embeddings of two views, normalised over D here.
        m1, m2: (B, P) labels, bool or 0/1, negative to ignore a cell.
        temperature: divides the cosines.
        form: see above; the released forms count every image, ours only those with both kinds of pair.
        background_positives: whether background pairs attract (else they repel).
        negatives: `batch` also takes the cells of view 2 of the other images as negatives of view 1 (and, in
            the form `anchor`, the other way round); for our own forms only.
        valid: (B,) bool; False leaves an image out (it has no mask).

    Returns:
        terms (B,), zero where not counted; counted (B,) bool.

    Raises:
        ValueError: for shapes that do not fit, an unknown form, or batch negatives in a released form.
    """
    _check(u1, u2, m1, m2, form, negatives)
    u1, u2 = l2_normalize(u1, dim=1), l2_normalize(u2, dim=1)
    with torch.autocast(u1.device.type, enabled=False):
        scores = torch.einsum("bdi,bdj->bij", u1, u2) / temperature
        pairs = cell_pairs(m1, m2, background_positives=background_positives)
        if form == "anchor":
            others = None
            if negatives == "batch":
                forth = _others_log_sum(u1, u2, m1, m2, temperature, valid)
                others = (forth, _others_log_sum(u2, u1, m2, m1, temperature, valid))
            terms, counted = _anchor_terms(scores, pairs, others)
        elif form == "image":
            cells = None
            if negatives == "batch":
                cells = _others_log_sum(u1, u2, m1, m2, temperature, valid)
            terms, counted = _image_terms(scores, pairs, cells)
        else:
            terms = _released_terms(scores, pairs, form, valid)
            counted = torch.ones_like(terms, dtype=torch.bool)
    if valid is not None:
        counted = counted & valid
    return terms.where(counted, terms.new_zeros(())), counted


def _check(u1: Tensor, u2: Tensor, m1: Tensor, m2: Tensor, form: str, negatives: str) -> None:
    """Refuse what would give a wrong number without an error."""
    batch, _, cells = u1.shape
    if u2.shape[:2] != u1.shape[:2] or m1.shape != (batch, cells) or m2.shape != (batch, u2.shape[2]):
        raise ValueError(
            f"embeddings {tuple(u1.shape)}, {tuple(u2.shape)} and labels {tuple(m1.shape)}, "
            f"{tuple(m2.shape)} do not fit: give u (B, D, P) and m (B, P)"
        )
    if form not in PIXEL_FORMS:
        raise ValueError(f"unknown form {form!r}; choose one of {', '.join(PIXEL_FORMS)}")
    if negatives == "batch" and form.endswith("released"):
        raise ValueError(
            f"form {form!r} takes the image's own negatives; batch negatives need image or anchor"
        )


def _masked_log_sum(scores: Tensor, mask: Tensor) -> Tensor:
    """Log of the sum of exp over a mask, last dimension; hugely negative, never -inf, where empty."""
    # half the lowest number: finite in sums and differences, so no gradient becomes NaN
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2).logsumexp(dim=-1)


def _image_terms(scores: Tensor, pairs: Pairs, others: Tensor | None) -> tuple[Tensor, Tensor]:
    """One term per image from its two sums; `others` (B, P) are log-sums of further negatives."""
    attract = _masked_log_sum(scores.flatten(1), pairs.positive.flatten(1))
    repel = _masked_log_sum(scores.flatten(1), pairs.negative.flatten(1))
    has_negative = pairs.negative.flatten(1).any(dim=1)
    if others is not None:
        repel = torch.logaddexp(repel, others.logsumexp(dim=1))
        has_negative = has_negative | _present(others).any(dim=1)
    counted = pairs.positive.flatten(1).any(dim=1) & has_negative
    return torch.logaddexp(attract, repel) - attract, counted


def _released_terms(scores: Tensor, pairs: Pairs, form: PixelForm, valid: Tensor | None) -> Tensor:
    """One term per image as the authors' code computes it, its constants included."""
    attract = _masked_log_sum(scores.flatten(1), pairs.positive.flatten(1))
    repel = _masked_log_sum(scores.flatten(1), pairs.negative.flatten(1))
    if form == "image_released":
        one = torch.zeros_like(attract)  # log 1
        attract, repel = torch.logaddexp(attract, one), torch.logaddexp(repel, one)
        return torch.logaddexp(attract, repel) - attract
    totals = torch.logaddexp(attract, repel)
    total = _masked_log_sum(totals, torch.ones_like(totals, dtype=torch.bool) if valid is None else valid)
    return total - torch.logaddexp(attract, torch.full_like(attract, 1e-5).log())


def _present(log_sums: Tensor) -> Tensor:
    """Where a masked log-sum had anything to sum."""
    return log_sums > torch.finfo(log_sums.dtype).min / 4


def _anchor_terms(
    scores: Tensor, pairs: Pairs, others: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """One term per image: the mean over the cells of both views that have positives and negatives."""
    sums, counts = [], []
    for direction in (0, 1):
        if direction:
            scores, pairs = scores.transpose(1, 2), Pairs(*(mask.transpose(1, 2) for mask in pairs))
        repel = _masked_log_sum(scores, pairs.negative)
        has_negative = pairs.negative.any(dim=2)
        if others is not None:
            repel = torch.logaddexp(repel, others[direction])
            has_negative = has_negative | _present(others[direction])
        terms = torch.logaddexp(scores, repel[:, :, None]) - scores
        positives = pairs.positive.sum(dim=2)
        used = (positives > 0) & has_negative
        cell = terms.where(pairs.positive, terms.new_zeros(())).sum(dim=2) / positives.clamp(min=1)
        sums.append(cell.where(used, cell.new_zeros(())).sum(dim=1))
        counts.append(used.sum(dim=1))
    number = counts[0] + counts[1]
    return (sums[0] + sums[1]) / number.clamp(min=1), number > 0


def _others_log_sum(
    u1: Tensor, u2: Tensor, m1: Tensor, m2: Tensor, temperature: float, valid: Tensor | None
) -> Tensor:
    """For each cell of view 1, log of the sum of exp over the cells of view 2 of the other images, (B, P).

    Image by image chunks, recomputed in the backward pass where the logits would be too many to keep.
    """
    batch, _, cells = u1.shape
    known1, known2 = m1 >= 0, m2 >= 0
    if valid is not None:
        known1, known2 = known1 & valid[:, None], known2 & valid[:, None]
    keys = u2.transpose(1, 2).flatten(0, 1)
    flat = known2.flatten()

    def rows(start: int, stop: int, queries: Tensor, keys: Tensor) -> Tensor:
        scores = torch.einsum("bdi,kd->bik", queries, keys) / temperature
        image = torch.arange(batch, device=keys.device)
        other = image[start:stop, None] != image.repeat_interleave(known2.shape[1])[None]
        mask = (other & flat)[:, None, :] & known1[start:stop, :, None]
        return _masked_log_sum(scores, mask)

    step = max(1, CHUNK_LOGITS // (cells * len(keys)))
    if step >= batch:
        return rows(0, batch, u1, keys)
    parts = [
        checkpoint(rows, start, min(start + step, batch), u1[start : start + step], keys, use_reentrant=False)
        for start in range(0, batch, step)
    ]
    return torch.cat(parts)

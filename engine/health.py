"""Signs of health of a run: spread of the embeddings, waiting for data, and what they mean in words.

Shape legend: N embeddings, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def collapse_metrics(embeddings: Tensor) -> dict[str, Tensor]:
    """Measure how far embeddings are from collapse, on the device.

    `feature_std` is the mean standard deviation of the normalised embeddings' dimensions times sqrt(D): 1
    for rows spread evenly over the sphere, 0 for one point (Chen and He, arXiv 2011.10566, section 4.1).
    `effective_rank` is exp of the entropy of the normalised singular values (Roy and Vetterli 2007;
    RankMe, arXiv 2210.02885), between 1 and min(N, D); here of the centred rows.

    Args:
        embeddings: (N, D), N at least 2.

    Returns:
        The two scalars.
    """
    rows = functional.normalize(embeddings.detach().float(), dim=1)
    deviation = rows.std(0).mean() * rows.shape[1] ** 0.5
    singular = torch.linalg.svdvals(rows - rows.mean(0))
    shares = singular / singular.sum().clamp_min(1e-12)
    rank = torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum())
    return {"feature_std": deviation, "effective_rank": rank}


def health_warnings(
    values: dict[str, float], references: dict[str, float], *, progress: float, workers: int | None = None
) -> list[str]:
    """Say in words what is wrong with a run, from the numbers of one log line.

    Args:
        values: what was logged: `feature_std`, `effective_rank`, `data_wait_fraction` and the loss parts.
        references: closed form of parts at chance level.
        progress: share of the run done, in [0, 1].
        workers: loader workers, for the advice.

    Returns:
        Sentences; empty for a healthy run.
    """
    found = []
    deviation, rank = values.get("feature_std"), values.get("effective_rank")
    if deviation is not None and deviation < 0.05:
        found.append(
            f"collapse: the embeddings are nearly one point (feature_std {deviation:.3f}; 1 is even); "
            "lower the learning rate, or raise the batch size or the number of negatives"
        )
    elif rank is not None and rank < 2.0:
        found.append(
            f"collapse: the embeddings vary along one direction only (effective_rank {rank:.1f}); "
            "a loss without negatives or instance term ends so"
        )
    wait = values.get("data_wait_fraction")
    if wait is not None and wait > 0.2:
        now = "" if workers is None else f" (now {workers})"
        found.append(
            f"starving: {wait:.0%} of the time goes to waiting for data; raise --workers{now}, "
            "or pack the images (hapicl data pack)"
        )
    for name, chance in references.items():
        if f"{name}_target_rank" in values:
            found += _at_collapse(name, values, chance, progress)
            continue
        if progress > 0.2 and name in values and chance > 0 and abs(values[name] / chance - 1) < 0.005:
            found.append(
                f"not learning: {name} is still at chance level ({values[name]:.3f} of {chance:.3f}); "
                "raise the learning rate or check the augmentation"
            )
    return found


def _at_collapse(name: str, values: dict[str, float], level: float, progress: float) -> list[str]:
    """Say that a part which comes with the rank of its targets sits where all targets are alike."""
    if progress <= 0.2 or name not in values or abs(values[name] - level) > 0.005:
        return []
    rank = values[f"{name}_target_rank"]
    return [
        f"collapse: {name} sits at its collapse level ({values[name]:.3f} of {level:.3f}), where all "
        f"targets are alike (their effective rank is {rank:.1f}); lower the learning rate, raise the "
        "batch size, or give the slow copy more momentum"
    ]

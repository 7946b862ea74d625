"""Health of a run: spread of the embeddings, waiting for data, losses at chance, and what they mean in words.

Shape legend: N embeddings, D dimensions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .loggers.run_files import LOSS

# a collapse or a loss at chance must last this fraction of the run, at most so many steps
PATIENCE, LONGEST_PATIENCE = 0.1, 1000


@torch.no_grad()
def collapse_metrics(embeddings: Tensor) -> dict[str, Tensor]:
    """Measure how far embeddings are from collapse, on the device.

    `embedding/std` is the mean standard deviation of the normalised embeddings' dimensions times sqrt(D): 1
    for rows spread evenly over the sphere, 0 for one point (Chen and He, arXiv 2011.10566, section 4.1).
    `embedding/effective_rank` is exp of the entropy of the normalised singular values (Roy and Vetterli 2007;
    RankMe, arXiv 2210.02885), between 1 and min(N, D); here of the centred rows.

    Args:
        embeddings: (N, D), N at least 2.

    Returns:
        The two scalars.
    """
    rows = functional.normalize(embeddings.detach().float(), dim=1)
    deviation = rows.std(0).mean() * rows.shape[1] ** 0.5
    singular = torch.linalg.svdvals(rows - rows.mean(0))
    fractions = singular / singular.sum().clamp_min(1e-12)
    rank = torch.exp(-(fractions * fractions.clamp_min(1e-12).log()).sum())
    return {"embedding/std": deviation, "embedding/effective_rank": rank}


def health_warnings(
    values: dict[str, float], references: dict[str, float], *, progress: float, workers: int | None = None
) -> list[str]:
    """Say in words what is wrong with a run, from the numbers of one log line.

    Args:
        values: one line of the log: `embedding/std`, `embedding/effective_rank`, `speed/data_wait_fraction`
            and the loss terms.
        references: closed form of loss terms (or metrics) at chance level, by name.
        progress: fraction of the run done, in [0, 1].
        workers: loader workers, which a starving run should raise; None where there are none to raise.

    Returns:
        Sentences; empty for a healthy run.
    """
    found = []
    deviation, rank = values.get("embedding/std"), values.get("embedding/effective_rank")
    if deviation is not None and deviation < 0.05:
        found.append(
            f"collapse: the embeddings are nearly one point (embedding/std {deviation:.3f}; 1 is even); "
            "lower the learning rate, or raise the batch size or the number of negatives"
        )
    elif rank is not None and rank < 2.0:
        found.append(
            f"collapse: the embeddings vary along one direction only (effective rank {rank:.1f}); "
            "a loss without negatives or instance term ends so"
        )
    wait = values.get("speed/data_wait_fraction")
    if wait is not None and wait > 0.2 and workers is not None:
        found.append(
            f"starving: {wait:.0%} of the time goes to waiting for data; raise --workers (now {workers}), "
            "or pack the images (hapicl data pack)"
        )
    for name, chance in references.items():
        value = values.get(LOSS + name, values.get(name))
        if value is None or progress <= 0.2:
            continue
        if f"{name}/target_rank" in values:
            found += _at_collapse(name, value, chance, values[f"{name}/target_rank"])
        elif chance > 0 and abs(value / chance - 1) < 0.005:
            found.append(
                f"not learning: {name} is still at chance level ({value:.3f} of {chance:.3f}); "
                "raise the learning rate or check the augmentation"
            )
    return found


class HealthWatch:
    """Decides when a warning is given: once it has lasted, and once a session.

    A slow copy starts as the online network's equal and a queue full of random rows, so the embeddings are
    nearly one point at first and the loss climbs through its chance level while the queue fills. Neither is
    ill unless it stays. Waiting for data is said at once, but not of a session's first line, which holds the
    start of the workers.

    Args:
        total_steps: of the run.
        workers: loader workers, as for `health_warnings`.
    """

    def __init__(self, *, total_steps: int, workers: int | None = None) -> None:
        self._total, self._workers = total_steps, workers
        self._patience = min(LONGEST_PATIENCE, PATIENCE * total_steps)
        self._since: dict[str, int] = {}  # step at which each kind began
        self._given: set[str] = set()
        self._begun = False

    def judge(self, step: int, values: dict[str, float], references: dict[str, float]) -> list[str]:
        """Take one line of the log; give the sentences that are due now.

        Args:
            step: optimiser steps done.
            values, references: as for `health_warnings`.
        """
        if not self._begun:
            values = {name: value for name, value in values.items() if name != "speed/data_wait_fraction"}
            self._begun = True
        sentences = health_warnings(values, references, progress=step / self._total, workers=self._workers)
        found = {sentence.split(":")[0]: sentence for sentence in sentences}
        self._since = {kind: self._since.get(kind, step) for kind in found}
        due = [kind for kind in found if kind not in self._given and self._has_lasted(kind, step)]
        self._given.update(due)
        return [found[kind] for kind in due]

    def _has_lasted(self, kind: str, step: int) -> bool:
        """Whether a kind of warning holds long enough, and not only since the beginning of the run."""
        if kind == "starving":
            return True
        return step - self._since[kind] >= self._patience and step > 2 * self._patience


class StartWatch:
    """Says, once each, that a number has fallen below what the weights a run started from gave.

    Args:
        first: by name, as far as known from a session before; None watches nothing.
        total_steps: of the run; a fall counts once it has lasted a tenth of it, at most so many steps.
    """

    # fraction of the first value below which a number has fallen: a batch's rank moves by some per cent
    WATCHED: ClassVar[dict[str, float]] = {"knn/accuracy": 1.0, "embedding/effective_rank": 0.9}

    def __init__(self, first: dict[str, float] | None, *, total_steps: int) -> None:
        self._watches = first is not None
        self._first = dict(first or {})
        self._patience = min(LONGEST_PATIENCE, PATIENCE * total_steps)
        self._since: dict[str, int] = {}
        self._given: set[str] = set()

    def judge(self, step: int, values: dict[str, float]) -> list[str]:
        """Take one line of the log, at `step` optimiser steps done; give the sentences that are due now."""
        found = []
        for name in self.WATCHED.keys() & values.keys() if self._watches else ():
            first = self._first.setdefault(name, values[name])
            if values[name] >= self.WATCHED[name] * first:
                self._since.pop(name, None)
                continue
            lasted = step - self._since.setdefault(name, step) >= self._patience
            if lasted and name not in self._given:
                self._given.add(name)
                found.append(
                    f"forgetting: {name} is {values[name]:.3g}, below the {first:.3g} of the weights that "
                    "this run started from; lower the rate, keep the first stages (such as --set "
                    "freeze=stem,layer1), or pull towards the start (such as --set pull=0.01)"
                )
        return found


def _at_collapse(name: str, value: float, level: float, rank: float) -> list[str]:
    """Say that a loss term which comes with the rank of its targets sits where all targets are alike."""
    if abs(value - level) > 0.005:
        return []
    return [
        f"collapse: {name} sits at its collapse level ({value:.3f} of {level:.3f}), where all "
        f"targets are alike (their effective rank is {rank:.1f}); lower the learning rate, raise the "
        "batch size, or give the slow copy more momentum"
    ]

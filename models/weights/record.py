"""What is said of weights: where they come from and how much of them matched."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

# not files: random weights; what their BatchNorm gets is the evaluation's (see `batch_statistics`)
RANDOM = ("random", "random-untouched")


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """Where a backbone's weights come from and how much of the file matched."""

    spec: str  # as the user gave it
    kind: str  # random | random-untouched | supervised | file
    arch: str
    stem: str
    stem_by_size: bool = False  # neither the user nor the weights said which
    sha256: str  # of the file; of "random:<seed>" for random weights
    matched: int
    total: int
    prefix: str = ""
    missing: tuple[str, ...] = ()  # names that keep their initialisation
    method: str = ""

    @property
    def fraction(self) -> float:
        """Fraction of the backbone's tensors that the file gave."""
        return self.matched / self.total

    def line(self) -> str:
        """One line for the user: what matched."""
        if self.kind in RANDOM:
            return f"weights: random initialisation of {self.arch} (stem {self.stem})"
        under = f" under {self.prefix!r}" if self.prefix else ""
        return (
            f"weights: {self.matched} of {self.total} keys of {self.arch} (stem {self.stem}) matched "
            f"({self.fraction:.1%}){under} in {self.spec}{self._missing_words()}{self._stem_words()}"
        )

    def _stem_words(self) -> str:
        """That a stem was chosen which weights of another toolkit were hardly trained with."""
        if not self.stem_by_size or self.stem not in {"no_pool", "stride1"}:
            return ""
        return (
            f"\nthe weights do not say their stem: {self.stem} fits the size of the input. Compare with "
            "weights of the same stem only (--like WEIGHTS takes theirs); the usual one is --stem imagenet"
        )

    def _missing_words(self) -> str:
        """What keeps its initialisation, if anything does."""
        if not self.missing:
            return ""
        more = f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
        return f"; initialised anew: {', '.join(self.missing[:3])}{more}"

    def record(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            **dataclasses.asdict(self),
            "missing": list(self.missing),
            "fraction": round(self.fraction, 4),
        }

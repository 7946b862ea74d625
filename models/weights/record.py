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
            f"({self.fraction:.1%}){under} in {self.spec}{self._missing_words()}"
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

"""The attacks of the torture that kill nothing: settings, mask files and checkpoints made wrong."""

from __future__ import annotations

import collections
import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crafted_checkpoints
import forked
import fuzz_masks
import fuzz_settings
from torture_subjects import Subject


@dataclass
class Tally:
    """What came of one kind of attack."""

    attacks: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {"attacks": self.attacks, "outcomes": dict(self.outcomes), "failures": self.failures}


def settings(folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Set keys to any value, by `--set` and in a recipe's file in turn."""
    cases = fuzz_settings.cases(count, seed=draw.randrange(2**31))

    def attempts() -> Iterator[tuple[str, Callable[[], str]]]:
        for case, place in zip(cases, itertools.cycle([None, folder]), strict=False):
            what = f"{case.method} {case.overrides}{' in a recipe' if place else ''}"
            yield what, lambda case=case, place=place: fuzz_settings.outcome(case, place)

    _cases(folder, attempts(), tally)


def masks(folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Give crafted mask files to everything that reads them."""
    seed = draw.randrange(2**31)

    def attempts() -> Iterator[tuple[str, Callable[[], str]]]:
        base = fuzz_masks.make_base(folder)
        for number in range(count):
            yield f"case {number} of seed {seed}", lambda number=number: use(number, base)

    def use(number: int, base: Path) -> str:
        made, failures = fuzz_masks.run_case(number, seed, base)
        if failures:
            raise ValueError(f"{made}: {failures}")
        return "refused or read"

    _cases(folder, attempts(), tally)


def _cases(folder: Path, attempts: Iterator[tuple[str, Callable[[], str]]], tally: Tally) -> None:
    """Make attempts in one child: what they return is counted, what they raise has failed."""
    errors, result = folder.with_suffix(".stderr"), folder / "result.json"

    def call() -> None:
        for what, attempt in attempts:
            tally.attacks += 1
            try:
                tally.outcomes[attempt()] += 1
            except Exception as error:  # noqa: BLE001 - what would be a traceback is looked for
                tally.failures.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
        result.write_text(json.dumps(tally.as_json()), encoding="utf-8")

    code = forked.finish(forked.start(call, errors), seconds=3600)
    if code != 0:
        tally.failures.append(f"ended with {code}: {errors.read_text(errors='backslashreplace')[-1500:]}")
        return
    made = json.loads(result.read_text(encoding="utf-8"))
    tally.attacks, tally.failures = made["attacks"], made["failures"]
    tally.outcomes.update(made["outcomes"])


def checkpoints(subject: Subject, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """Resume a training from crafted checkpoints whose checksums are right."""
    words = subject.arguments(folder)[:-2]
    shorter = [*words, "--steps", "3", "--workers", "0"]
    code = forked.run(forked.hapicl(shorter), folder.with_suffix(".stderr"))
    assert code == 0, folder.with_suffix(".stderr").read_text()
    good = folder / "run" / "previous.pt"
    first = draw.randrange(2**31)
    for number in range(first, first + count):
        place = folder / f"{number}"
        errors, file = place.with_suffix(".stderr"), place / "run" / "last.pt"
        shutil.copytree(folder / "run", file.parent)
        what = crafted_checkpoints.craft(good, file, number)
        code = forked.run(forked.hapicl([*shorter, "--out", str(file.parent), "--resume", "auto"]), errors)
        said = errors.read_text(errors="backslashreplace")
        tally.attacks += 1
        tally.outcomes[f"exit {code}"] += 1
        if code not in {0, 2, 3} or "Traceback" in said:
            tally.failures.append(f"checkpoint {number} ({what}): exit {code}: {said[-1500:]}")
        shutil.rmtree(place)

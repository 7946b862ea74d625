"""The attacks of the torture that kill: each counts how often it was tried, how it ended and what failed."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import forked
import torture_crafted
from torture_crafted import Tally
from torture_subjects import Subject, grow, leftovers, make_subjects

from hapicl import cli
from hapicl.data.masks.reader import MaskReader

SUBJECTS = {
    "pretrain": "pretrain",
    "two": "pretrain, two processes",
    "evaluate": "evaluate semi",
    "build": "masks build",
    "pack": "data pack",
}
FIRST_MOMENT = 0.05  # seconds; before it the forked child is not yet a command
EXIT_LOST = 2  # of one of several processes that has lost another
EXIT_REFUSED = 2  # of a command whose place another one holds
PAIR_SECONDS = 0.1  # at most between two commands given at the same moment
TRIES = 4  # for each kill that is to count


@dataclass(frozen=True)
class Whole:
    """A command that was left alone."""

    result: str
    seconds: float


class Torture:
    """The attacks, on data and undisturbed results that are made once."""

    def __init__(self, scratch: Path, seed: int) -> None:
        """Draw the data.

        Args:
            scratch: an empty folder.
            seed: of every moment and choice.
        """
        self._scratch, self._seed = scratch, seed
        self._data = scratch / "data"
        self._subjects = make_subjects(self._data)
        self._whole: dict[str, Whole] = {}
        self._numbers = itertools.count()
        # in the parent, so that no child has to
        for name in cli.COMMANDS:
            cli.command_line.get_command(None, name)  # type: ignore[arg-type]

    def attack(self, name: str, count: int) -> Tally:
        """Attack so many times in one way."""
        tally = Tally()
        draw = random.Random(f"{self._seed} {name}")
        if name in SUBJECTS:
            self._kills(self._subjects[SUBJECTS[name]], count, draw, tally)
        elif name == "checkpoints":
            torture_crafted.checkpoints(self._subjects["pretrain"], self._folder(), count, draw, tally)
        elif name in {"settings", "masks"}:
            getattr(torture_crafted, name)(self._folder(), count, draw, tally)
        else:
            other = {
                "pairs": self._pairs,
                "workers": self._workers,
                "update": self._updates,
            }
            other[name](count, draw, tally)
        return tally

    def _folder(self) -> Path:
        folder = self._scratch / f"{next(self._numbers)}"
        folder.mkdir()
        return folder

    def _undisturbed(self, subject: Subject) -> Whole:
        """Run a command to its end, twice: the first run tells what the parent may import for all others."""
        if subject.name not in self._whole:
            for _ in range(2):
                folder, start = self._folder(), time.monotonic()
                errors, imported = folder.with_suffix(".stderr"), folder.with_suffix(".modules")
                started = subject.start(folder, errors, imported=imported)
                codes = [forked.finish(process) for process in started]
                assert not any(codes), f"{subject.name} left alone: {codes}\n{errors.read_text()}"
                assert leftovers(folder) == []
                forked.import_all(imported.read_text().split())
                self._whole[subject.name] = Whole(subject.result(folder), time.monotonic() - start)
        return self._whole[subject.name]

    def _kills(self, subject: Subject, count: int, draw: random.Random, tally: Tally) -> None:
        """Kill a command at random moments."""
        whole = self._undisturbed(subject)
        for number in range(count * TRIES):
            if tally.attacks == count:
                return
            folder = self._folder()
            errors = folder.with_suffix(".stderr")
            outcomes, wrong = [], []
            for _ in range(2 if number % 3 == 2 else 1):
                aimed = subject.inside is not None and number % 3 == 0
                outcome, fault = _kill(subject, folder, errors, whole.seconds, draw, aimed=aimed)
                outcomes += [outcome] * (outcome is not None)
                wrong += [fault] * (fault is not None)
            tally.attacks += bool(outcomes)
            tally.outcomes.update(outcomes)
            if outcomes or wrong:
                self._settle(subject, folder, f"number {number} ({', '.join(outcomes)})", wrong, tally)
            shutil.rmtree(folder)

    def _settle(self, subject: Subject, folder: Path, what: str, wrong: list[str], tally: Tally) -> None:
        """Give the command again and compare what it has written."""
        errors = folder.with_suffix(".stderr")
        codes = forked.finish_together(subject.start(folder, errors))
        if any(code != 0 for code in codes):
            wrong.append(f"given again it ended with {codes}")
        elif subject.result(folder) != self._undisturbed(subject).result:
            wrong.append("another result than undisturbed")
        elif leftovers(folder):
            wrong.append(f"left {leftovers(folder)}")
        said = errors.read_text(errors="backslashreplace")
        if "Traceback" in said or "Warning:" in said:
            wrong.append("a traceback or a warning")
        if wrong:
            tally.failures.append(f"{what}: {'; '.join(wrong)}: {said[-1500:]}")

    def _pairs(self, count: int, draw: random.Random, tally: Tally) -> None:
        """Give a command twice at the same moment: one works, the other is told so or finds the work done."""
        subjects = [subject for subject in self._subjects.values() if subject.processes == 1]
        for number in range(count):
            subject = subjects[number % len(subjects)]
            self._undisturbed(subject)
            folder = self._folder()
            errors = [folder.with_suffix(f".stderr{which}") for which in range(2)]
            processes = [*subject.start(folder, errors[0])]
            time.sleep(draw.choice([0, draw.uniform(0, PAIR_SECONDS)]))
            processes += subject.start(folder, errors[1])
            codes = [forked.finish(process) for process in processes]
            refused = [
                file.read_text(errors="backslashreplace")
                for file, code in zip(errors, codes, strict=True)
                if code == EXIT_REFUSED
            ]
            tally.attacks += 1
            tally.outcomes[f"{subject.name}: exit {' '.join(map(str, sorted(codes, key=str)))}"] += 1
            wrong = [] if set(codes) <= {0, EXIT_REFUSED} and 0 in codes else [f"ended with {codes}"]
            wrong += [text for text in refused if " is in use by " not in text]
            folder.with_suffix(".stderr").write_bytes(b"".join(file.read_bytes() for file in errors))
            self._settle(subject, folder, f"number {number}, {subject.name}", wrong, tally)
            shutil.rmtree(folder)

    def _workers(self, count: int, draw: random.Random, tally: Tally) -> None:
        """Kill a worker of a command that goes on."""
        subjects = [subject for subject in self._subjects.values() if subject.worker_codes]
        for number in range(count * TRIES):
            if tally.attacks == count:
                return
            subject = subjects[tally.attacks % len(subjects)]
            whole, folder = self._undisturbed(subject), self._folder()
            errors = folder.with_suffix(".stderr")
            (process,) = subject.start(folder, errors)
            forked.wait_until(process, lambda: False, draw.uniform(FIRST_MOMENT, whole.seconds))
            killed = not forked.has_ended(process) and forked.kill_worker(process, draw)
            code = forked.finish(process)
            if killed:
                tally.attacks += 1
                tally.outcomes[f"{subject.name}: exit {code}"] += 1
                wrong = [] if code in subject.worker_codes else [f"ended with {code}"]
                self._settle(subject, folder, f"number {number}, {subject.name}", wrong, tally)
            shutil.rmtree(folder)

    def _updates(self, count: int, draw: random.Random, tally: Tally) -> None:
        """Add images and update a mask file that another process reads all the time."""
        for number in range(count):
            folder = self._folder()
            errors = folder.with_suffix(".stderr")
            images = shutil.copytree(self._data / "images", folder / "images")
            file, fresh, end = folder / "masks.h5", folder / "fresh.h5", folder / "end"

            def build(out: Path, *more: str, images: Path = images, errors: Path = errors) -> int | None:
                words = ["masks", "build", "--images", str(images), "--out", str(out), "--recipe", "fast"]
                return forked.run(forked.hapicl([*words, "--workers", "2", *more]), errors)

            codes = [build(file)]
            reader = forked.start(lambda file=file, end=end: _read_until(file, end), errors)
            for _ in range(draw.randint(1, 3)):
                grow(images, draw)
            codes += [build(file, "--update"), build(fresh)]
            end.touch()
            codes.append(forked.finish(reader))
            tally.attacks += 1
            tally.outcomes[f"exit {codes}"] += 1
            if any(codes) or "Traceback" in errors.read_text() or leftovers(folder):
                tally.failures.append(f"number {number}: {codes} {leftovers(folder)} {errors.read_text()}")
            elif MaskReader(file).content_digest != MaskReader(fresh).content_digest:
                tally.failures.append(f"number {number}: another file than one built afresh")
            shutil.rmtree(folder)


def _kill(
    subject: Subject, folder: Path, errors: Path, seconds: float, draw: random.Random, *, aimed: bool
) -> tuple[str | None, str | None]:
    """Start the command and kill it; gives the outcome (None if it had ended before) and what was wrong."""
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, *subject.codes])
    moment, nth = draw.uniform(FIRST_MOMENT, seconds), draw.randint(1, 6)
    processes = subject.start(folder, errors)
    if aimed:
        _wait_inside(processes[0], folder, subject.inside or "", nth, seconds)
    else:
        forked.wait_until(processes[0], lambda: False, moment)
    late = all(forked.has_ended(process) for process in processes)
    one = len(processes) > 1 and draw.random() < 0.5
    targets = [draw.choice(processes)] if one else processes
    for process in targets:
        if not forked.has_ended(process):
            os.kill(process, number)
    codes = forked.finish_together(processes)
    if late or codes == [0] * len(codes):
        return None, None if set(codes) == {0} else f"ended with {codes} by itself"
    allowed = {-signal.SIGKILL} if number == signal.SIGKILL else {0, *subject.codes[number]}
    if one and number == signal.SIGKILL:  # the other learns of it, or is ended too
        allowed |= {EXIT_LOST, *subject.codes[signal.SIGTERM], 128 + signal.SIGTERM, -signal.SIGTERM}
    where = f"{' to one' if one else ''}{' inside a write' if aimed else ''}"
    outcome = f"{number.name}{where}: exit {' '.join(map(str, codes))}"
    return outcome, None if set(codes) <= allowed else f"{number.name} ended it with {codes}"


def _wait_inside(process: int, folder: Path, pattern: str, nth: int, seconds: float) -> None:
    """Wait until the nth file in the making is there."""
    for number in range(1, nth + 1):
        forked.wait_until(process, lambda: any(folder.glob(pattern)), 2 * seconds)
        if number < nth:
            forked.wait_until(process, lambda: not any(folder.glob(pattern)), seconds)


def _read_until(file: Path, end: Path) -> None:
    """Read every mask of a file again and again, as a training does that has opened it."""
    reader = MaskReader(file)
    paths = list(reader)
    while not end.exists():
        for path in paths:
            reader[path]

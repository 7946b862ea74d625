"""Stopping on a signal: finish the step, write a checkpoint, leave with a code that says so."""

from __future__ import annotations

import os
import signal
from types import FrameType

# sysexits.h EX_TEMPFAIL: "try again"; schedulers that requeue look for a code of their own
EXIT_STOPPED = 75
EXIT_NOT_FINITE = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A context in which SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 are noted instead of obeyed.

    A second Ctrl-C is obeyed at once. Processes forked meanwhile keep the usual behaviour, unless they choose
    another (the loader's workers do).
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._owner = os.getpid()
        self._before: dict[signal.Signals, object] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.name is not None

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number != signal.SIGINT:  # Ctrl-C reaches the whole group; the owner ends its workers itself
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

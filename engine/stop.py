"""Stopping on a signal: finish the step, write a checkpoint, leave with a code that says so.

Outside of the training loop (imports, start-up, export) there is no step to finish: there a signal raises
`Stopped` where the program stands, so that files in the making and locks are cleared away on the way out.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# sysexits.h EX_TEMPFAIL: "try again"; schedulers that requeue look for a code of their own
EXIT_STOPPED = 75
EXIT_NOT_FINITE = 3
RETRY_SECONDS = 0.02  # until an import is over
# those of them that the system has; SIGBREAK is Ctrl-Break on Windows (not run)
SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)
)
# whose handler raises a moment later; Windows has no alarm, and another process cannot send it SIGTERM
ALARM: signal.Signals = getattr(signal, "SIGALRM", signal.SIGTERM)

_missed: list[str] = []  # signals whose `Stopped` may have been swallowed, as in a destructor


class Stopped(BaseException):
    """A signal came outside of the training loop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"stopped by {self.name} before training began or after it ended; nothing is half-written"


@contextmanager
def raise_on_signals(numbers: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """A context in which the first of some signals raises `Stopped`; in a thread beside the main one, none.

    Later ones are ignored while the program clears up, except that a second Ctrl-C ends it at once. The
    exception is not raised inside an import, where some modules take any error for a missing part and go on,
    and it is raised again if it came in a destructor, where Python drops it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raiser = _Raiser(numbers)
    raiser.start()
    try:
        yield
    finally:
        raiser.end()


class _Raiser:
    """The handlers of one `raise_on_signals`."""

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self._numbers = numbers
        self._owner = os.getpid()
        self._came: int | None = None
        self._before: dict[signal.Signals, object] = {}
        self._hook = sys.unraisablehook

    def start(self) -> None:
        """Take the signals."""
        self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        sys.unraisablehook = self._dropped

    def end(self) -> None:
        """Give them back, but not in a forked child, where they are its own affair."""
        if os.getpid() != self._owner:
            return
        if self._came is not None:
            _set_alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        sys.unraisablehook = self._hook
        _missed.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            _leave_to_owner(number)
            return
        self._came = number
        _missed.append(signal.Signals(number).name)
        for other in self._numbers:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        self._before.setdefault(ALARM, signal.signal(ALARM, self._raise))
        self._raise(number, frame)

    def _raise(self, _: int, frame: FrameType | None) -> None:
        """Raise here, or a moment later if an import is under way."""
        assert self._came is not None
        if _is_importing(frame):
            _set_alarm(RETRY_SECONDS)
        else:
            raise Stopped(self._came)

    def _dropped(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Python has dropped an exception: raise again if it was ours, and say nothing of it."""
        if isinstance(unraisable.exc_value, Stopped):
            _set_alarm(RETRY_SECONDS)
        else:
            self._hook(unraisable)


class _Alarm:
    """Runs the handler of `ALARM` in the main thread a moment later, where the system has no such timer."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def set(self, seconds: float) -> None:
        """Wind it up; 0 calls it off."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, _thread.interrupt_main, [ALARM]) if seconds else None
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()


_alarm = _Alarm()


def _set_alarm(seconds: float) -> None:
    """Run the handler of `ALARM` in so many seconds; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
    else:
        _alarm.set(seconds)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported where the program stands."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def exit_when_stopped(say: Callable[[str], object]) -> Iterator[None]:
    """A context that a signal outside of the training loop ends with `EXIT_STOPPED`, after one sentence."""
    try:
        with raise_on_signals():
            yield
    except Stopped as stopped:
        say(f"{stopped}; give the same command again, where it has it with --resume auto")
        raise SystemExit(EXIT_STOPPED) from None


def _leave_to_owner(number: int) -> None:
    """A signal in a process forked from the one that handles them: it has the usual effect."""
    if number != signal.SIGINT:  # Ctrl-C reaches the whole group; the owner ends its workers itself
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class StopRequest:
    """A context in which `SIGNALS` (SIGINT is Ctrl-C) are noted instead of obeyed.

    A second Ctrl-C is obeyed at once. Processes forked meanwhile keep the usual behaviour, unless they choose
    another (the loader's workers do).
    """

    def __init__(self) -> None:
        self.name: str | None = None
        if _missed:  # a signal came just now, and its exception has not been raised yet
            self.name = _missed.pop()
            _set_alarm(0)
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
            _leave_to_owner(number)
            return
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

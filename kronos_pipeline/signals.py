"""Signals that end the process: Ctrl-C (SIGINT), SIGTERM and SIGHUP.

A command raises `Interrupted` when a signal arrives, so that MLflow's runs end as KILLED and temporary files go. A
training holds a signal until its step has ended, saves its state, and then lets the signal go on to the handler before:

    signal -> hold_signals -> end of the step -> state saved -> raise_interrupts in a command, Dagster's in a run

Signals that are ignored when the process starts stay ignored, as `nohup` ignores SIGHUP.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_AGAIN_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1
"""The operation of Linux's prctl that `end_with_parent` calls."""

_Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """Signal that ends a command.

    Attributes:
        number: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the signal ends, by shell convention: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class Signals:
    """Signals of a block of code; see `raise_interrupts` and `hold_signals`.

    Attributes:
        received: the number of the first signal that arrived, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def install(self, handler: _Handler) -> None:
        """Handle the signals that are not ignored; outside the main thread, where Python allows none, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _ENDING:
            before = signal.getsignal(number)
            if before is not None and before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, handler)

    def restore(self) -> None:
        """Restore the handlers before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def let_go(self, note: str | None = None) -> None:
        """Let a signal that is held go on to the handler before, which usually raises.

        Args:
            note: a note for the raised exception.
        """
        if self.received is None:
            return
        self.restore()
        try:
            signal.raise_signal(self.received)
        except BaseException as error:
            if note is not None:
                error.add_note(note)
            raise


def end_with_parent() -> None:
    """Let the system send SIGTERM to this process when its parent ends, also by kill -9; Linux only."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def raise_interrupts() -> Iterator[Signals]:
    """Raise `Interrupted` in the block when a signal arrives that ends the process."""
    signals = Signals()

    def interrupt(number: int, _: FrameType | None) -> None:
        signals.received = number
        raise Interrupted(number)

    def raise_again(unraisable: sys.UnraisableHookArgs) -> None:
        # The signal came in a callback of the interpreter, such as a finaliser, which cannot raise.
        if isinstance(unraisable.exc_value, Interrupted):
            again = threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main, [unraisable.exc_value.number])
            again.daemon = True
            again.start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, raise_again
    try:
        signals.install(interrupt)
        yield signals
    finally:
        signals.restore()
        sys.unraisablehook = hook


@contextmanager
def hold_signals() -> Iterator[Signals]:
    """Hold a signal that arrives in the block until `let_go` or the end of the block; a second signal is not held."""
    signals = Signals()

    def hold(number: int, _: FrameType | None) -> None:
        if signals.received is None:
            signals.received = number
        else:
            signals.let_go()

    try:
        signals.install(hold)
        yield signals
    finally:
        signals.restore()
    signals.let_go()

"""Progress of every wait: lines that move at the bottom of a terminal, elsewhere a line of text every few seconds.

    loading PyTorch  0:00:01                                          a step of unknown length: `status` and `step`
    adapters/AAPL ━━━━━━━━━━━╸        12/20 steps  loss 1.41  8 s left           of known length: `Progress`

All waits of a process share one display, so a wait within another is a line below it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Say = Callable[[str], None]
"""Takes a line for the person who runs the pipeline: `print`, or a logger's method."""

_LINE_SECONDS = 10.0


def say_nothing(_line: str) -> None:
    """Drop a line: the work is shown by bars on a terminal alone."""


def without_lines(say: Say) -> Say:
    """Return a taker of lines that drops them; bars are shown if `say` would allow them."""
    return say_nothing if say in (print, say_nothing) else lambda _: None


class _Display:
    """Lines that move, shared by all waits of the process; a line is a bar, or the step of the command."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bars: Bars | None = None
        self._tasks: list[TaskID] = []
        self._status: TaskID | None = None
        self._step: str | None = None

    def open(self, name: str, total: float, completed: float) -> TaskID | None:
        """Add a bar; None if stderr is no terminal."""
        with self._lock:
            if (bars := self._start()) is None:
                return None
            task = bars.add_task(name, total=total, numbers="", left="")
            bars.update(task, completed=completed)
            self._tasks.append(task)
            self._show_status()
            return task

    def update(self, task: TaskID, completed: float, total: float, numbers: str, left: float) -> None:
        """Move a bar; `left` is in seconds."""
        if self._bars is not None:
            self._bars.update(task, completed=completed, total=total, numbers=numbers, left=f"{duration(left)} left")

    def close(self, task: TaskID) -> None:
        """Remove a bar."""
        with self._lock:
            self._tasks.remove(task)
            if self._bars is not None:
                self._bars.remove_task(task)
            self._show_status()
            self._stop_if_empty()

    def begin(self) -> None:
        """Begin a command; its first step is shown."""
        self._step = ""

    def name_step(self, step: str) -> None:
        """Show the step of the command, if a command is in progress."""
        with self._lock:
            if self._step is None or (bars := self._start()) is None:
                return
            self._step = step
            if self._status is None:
                self._status = bars.add_task(step, total=None, numbers="", left="")
            self._show_status()

    def end(self) -> None:
        """Remove the step of the command that has ended."""
        with self._lock:
            self._step = None
            if self._status is not None and self._bars is not None:
                self._bars.remove_task(self._status)
            self._status = None
            self._stop_if_empty()

    def _show_status(self) -> None:
        """Show the step of the command unless a bar says more."""
        if self._bars is not None and self._status is not None and self._step is not None:
            self._bars.update(self._status, description=self._step, visible=not self._tasks)
            self._bars.refresh()  # at once: an import that follows may hold the interpreter

    def _start(self) -> Bars | None:
        if self._bars is None and sys.stderr is not None and sys.stderr.isatty():
            # Imported here, as a command's help does without rich.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            console = Console(stderr=True, soft_wrap=True)  # the terminal wraps lines that are printed above the bars
            if not console.is_interactive:
                return None
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[numbers]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                console=console,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # lines for a pipe or a file must reach it
            )
            self._bars.start()
        return self._bars

    def _stop_if_empty(self) -> None:
        if self._bars is not None and not self._tasks and self._status is None:
            self._bars.stop()
            self._bars = None


_display = _Display()


@contextmanager
def status() -> Iterator[None]:
    """Show on a terminal which `step` of a command is in progress; print nothing elsewhere."""
    _display.begin()
    try:
        yield
    finally:
        _display.end()


def step(name: str) -> None:
    """Say which step of the command begins, such as "loading PyTorch"; without `status` nothing happens."""
    _display.name_step(name)


class Progress:
    """Shows how much of a work is done and the time left; a context manager."""

    _ends_with_a_line = False

    def __init__(self, name: str, total: float, *, start: float = 0.0, say: Say = print) -> None:
        """Describe the work.

        Args:
            name: its name, such as "adapters/AAPL".
            total: its amount, in any unit.
            start: the amount that is done already.
            say: takes the lines if there is no terminal; bars are shown if it is `print` or `say_nothing`.
        """
        self._name, self._total, self._start, self._say = name, total, start, say
        self._began = self._last_line = time.monotonic()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._began = self._last_line = time.monotonic()
        if self._say in (print, say_nothing):
            self._task = _display.open(self._name, self._total, self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            _display.close(self._task)
            self._task = None

    @property
    def seconds(self) -> float:
        """The time since the work began."""
        return time.monotonic() - self._began

    def update(self, completed: float, numbers: str, *, left: float | None = None, total: float | None = None) -> None:
        """Show the progress.

        Args:
            completed: the amount that is done.
            numbers: the text to show, such as "3/12 tickers".
            left: the seconds left; by default as the work since the beginning took.
            total: the new amount of the work, if it has changed.
        """
        self._total = self._total if total is None else total
        if left is None:
            left = self.seconds / max(completed - self._start, 1e-9) * (self._total - completed)
        if self._task is not None:
            _display.update(self._task, completed, self._total, numbers, left)
            return
        now = time.monotonic()
        if now - self._last_line >= _LINE_SECONDS or (self._ends_with_a_line and completed >= self._total):
            self._last_line = now
            self._say(f"{self._name}: {numbers}  {duration(left)} left")


class TrainingProgress(Progress):
    """Progress of a training in optimiser steps; its last step always gives a line."""

    _ends_with_a_line = True

    def update_step(self, step: int, *, loss: float, learning_rate: float, windows_per_second: float) -> None:
        """Show the progress; `loss` is in nats per token."""
        numbers = f"loss {loss:.4f}  lr {learning_rate:.2e}  {windows_per_second:,.0f} windows/s"
        self.update(step, f"step {step}/{self._total:.0f}  {numbers}")


def duration(seconds: float) -> str:
    """Format seconds for people: "8 s", "4 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

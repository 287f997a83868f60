"""Progress of a training: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Say = Callable[[str], None]
"""Takes a line for the person who runs the pipeline: `print`, or a logger's method."""

_LINE_SECONDS = 10.0


class TrainingProgress:
    """Shows step, loss, learning rate, windows per second and time left; a context manager."""

    def __init__(self, name: str, steps: int, start: int, say: Say) -> None:
        """Describe the training.

        Args:
            name: its name, such as "adapters/AAPL".
            steps: all optimiser steps.
            start: steps done already, if it resumes.
            say: takes the lines if there is no terminal.
        """
        self._name, self._steps, self._start, self._say = name, steps, start, say
        self._began = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal and say is print:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps  {task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(name, total=steps, completed=start, numbers="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, *, loss: float, learning_rate: float, windows_per_second: float) -> None:
        """Show the progress of the training; `loss` is in nats per token."""
        numbers = f"loss {loss:.4f}  lr {learning_rate:.2e}  {windows_per_second:,.0f} windows/s"
        if self._bar:
            self._bar.update(self._task, completed=step, numbers=numbers)
            return
        now = time.monotonic()
        if now - self._last_line < _LINE_SECONDS and step < self._steps:
            return
        self._last_line = now
        remaining = (now - self._began) / max(step - self._start, 1) * (self._steps - step)
        self._say(f"{self._name}: step {step}/{self._steps}  {numbers}  {duration(remaining)} left")


def duration(seconds: float) -> str:
    """Format seconds for people: "8 s", "4 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

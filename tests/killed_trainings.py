"""Callback that ends a training the way a kill does, for tests of its resumption."""

from __future__ import annotations

from kronos_pipeline.training.callback import Callback


class Killed(BaseException):
    """Raised by a test in the place of a kill."""


class KillAtStep(Callback):
    """Raises `Killed` at the end of a step, before the state of that step is saved."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, step: int) -> None:
        if step == self._step:
            raise Killed

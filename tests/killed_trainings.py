"""Callback that ends a training like a kill, for tests of its resumption."""

from __future__ import annotations

from kronos_pipeline.training.callback import Callback


class Killed(BaseException):
    """Error that a test raises in place of a kill."""


class KillAtStep(Callback):
    """Callback that raises `Killed` at the end of a step, before the state of the step is saved."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, step: int) -> None:
        if step == self._step:
            raise Killed

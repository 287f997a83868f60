"""Callback of a training; without torch, as the tracking of runs imports it."""

from __future__ import annotations

from collections.abc import Mapping


class Callback:
    """Receives the events of a training; every method does nothing by default, and a subclass overrides methods.

    An error in a method ends the training. The training resumes from its last saved state if it is started again.
    """

    def on_step_end(self, step: int) -> None:
        """Receive the end of an optimiser step, before its losses are read and its state is saved.

        Every process of a training calls it. It should not wait for the device.

        Args:
            step: optimiser steps done, from 1.
        """

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Receive the losses after a step, each time they are read; the main process alone calls it.

        Args:
            step: optimiser steps done.
            values: epoch, train_loss and selection_loss (nats per token; NaN if it was not evaluated), learning_rate
                and windows_per_second.
        """

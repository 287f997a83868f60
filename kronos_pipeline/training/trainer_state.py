"""State and output of a training.

A single training and each member of a joint training keep the same state, so both end with the same numbers. The state
is plain data and is saved for resumption.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from kronos_pipeline.errors import ModelError
from kronos_pipeline.training.host_copy import state_to_host

HISTORY = ("step", "epoch", "train_loss", "selection_loss", "learning_rate", "windows_per_second")

NO_BETTER = "no better than the untouched model on the selection block"
"""The note of a training without a better evaluation than the evaluation before its first step."""

Tensors = dict[str, torch.Tensor]
Save = Callable[[dict[str, Any]], bool]
"""Saves a state, and returns whether that succeeded."""


@dataclass(frozen=True)
class TrainOutput:
    """Output of a training.

    Attributes:
        best: the trained tensors by name, at the best evaluation on the selection block.
        last: the same at the last step.
        history: a row per evaluation or log, with the columns of `HISTORY`; losses in nats per token, NaN if not
            measured. Step 0 of epoch 0 is the untouched model.
        summary: numbers of the whole: steps, best_step, selection_loss, seconds and so on.
    """

    best: Tensors
    last: Tensors
    history: pd.DataFrame
    summary: dict[str, Any]


@dataclass
class TrainerState:
    """Position and history of a training; plain data, saved for resumption.

    Attributes:
        step: optimiser steps done.
        stopped: whether early stopping has ended the training.
        best_step: the step of the best evaluation on the selection block.
        best_loss: the loss there, in nats per token.
        untouched_loss: the loss on the selection block before the first step, in nats per token.
        evals_since_best: evaluations since then.
        seconds: training time so far, over all runs of the process.
        rows: a row per evaluation or log, with the columns of `HISTORY`.
    """

    step: int = 0
    stopped: bool = False
    best_step: int = 0
    best_loss: float = math.inf
    untouched_loss: float = math.inf
    evals_since_best: int = 0
    seconds: float = 0.0
    rows: list[list[float]] = field(default_factory=list)

    def start(self, untouched_loss: float) -> dict[str, float]:
        """Log the loss on the selection block before the first step; return the values for `Callback.on_log`.

        Raises:
            ModelError: the loss is not finite.
        """
        self.untouched_loss = check_finite(untouched_loss, self.step)
        return self.log(
            epoch=0,
            train_loss=math.nan,
            selection_loss=untouched_loss,
            learning_rate=math.nan,
            windows_per_second=math.nan,
        )

    def evaluate(self, loss: float, patience: int) -> bool:
        """Record an evaluation on the selection block, and stop if the last `patience` ones brought no improvement.

        Returns:
            Whether the loss is the best so far.

        Raises:
            ModelError: the loss is not finite.
        """
        if check_finite(loss, self.step) < self.best_loss:
            self.best_loss, self.best_step, self.evals_since_best = loss, self.step, 0
            return True
        self.evals_since_best += 1
        self.stopped = self.evals_since_best >= patience
        return False

    def log(
        self,
        *,
        epoch: int,
        train_loss: float,
        selection_loss: float,
        learning_rate: float,
        windows_per_second: float,
    ) -> dict[str, float]:
        """Add a row to the history at this step; return its values by name for `Callback.on_log`."""
        self.rows.append([self.step, epoch, train_loss, selection_loss, learning_rate, windows_per_second])
        return dict(zip(HISTORY[1:], self.rows[-1][1:], strict=True))

    def output(
        self, best: Tensors, last: Tensors, *, steps: int, windows_per_step: int, resumed_from: int
    ) -> TrainOutput:
        """Make the output of the training when it has ended.

        Args:
            best: the tensors at the best evaluation; they are copied to the host, like the last.
            last: the tensors at the last step.
            steps: planned steps.
            windows_per_step: windows per optimiser step.
            resumed_from: the step at which this process resumed.
        """
        history = pd.DataFrame(self.rows, columns=list(HISTORY))
        return TrainOutput(
            best={name: tensor.detach().clone() for name, tensor in state_to_host(best).items()},
            last={name: tensor.detach().clone() for name, tensor in state_to_host(last).items()},
            history=history.astype({"step": "int64", "epoch": "int64"}),
            summary={
                "steps": self.step,
                "best_step": self.best_step,
                "selection_loss": self.best_loss,
                "untouched_loss": self.untouched_loss,
                "note": None if self.best_loss < self.untouched_loss else NO_BETTER,
                "stopped_early": self.stopped and self.step < steps,
                "seconds": round(self.seconds, 3),
                "windows_per_second": round(self.step * windows_per_step / max(self.seconds, 1e-9), 1),
                "resumed_from_step": resumed_from,
            },
        )


def check_finite(loss: float, step: int) -> float:
    """Return the loss.

    Raises:
        ModelError: it is not finite.
    """
    if not math.isfinite(loss):
        raise ModelError(f"The loss is {loss} at step {step}; lower --learning-rate, or use --precision fp32.")
    return loss


def describe_save(name: str, step: int, steps: int, *, saved: bool) -> str:
    """Describe the state of an interrupted training, for the message of the interrupt."""
    return f"the state of {name} at step {step} of {steps} {'is' if saved else 'could not be'} saved"

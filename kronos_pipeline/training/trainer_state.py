"""The course of a training: its order, rates and looks, where it is, and what came of it.

A lone training follows it, and so does each of the adapters that train together, so both end with the same numbers.
Everything here follows from the settings and the counts alone; a position is plain data and saved with the state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from kronos_pipeline.errors import ModelError
from kronos_pipeline.training.host_copy import state_to_host

HISTORY = ("step", "epoch", "train_loss", "selection_loss", "learning_rate", "windows_per_second")

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainOutput:
    """What an optimisation found.

    Attributes:
        best: the trained tensors by name, at the best look at the selection block.
        last: the same at the last step.
        history: a row per look or reading, see `HISTORY`; losses in nats per token, NaN where not measured.
        summary: numbers of the whole: steps, best_step, selection_loss, seconds and so on.
    """

    best: Tensors
    last: Tensors
    history: pd.DataFrame
    summary: dict[str, Any]


@dataclass
class TrainerState:
    """Where a training is; plain data, saved with the state.

    Attributes:
        step: optimiser steps done.
        stopped: whether early stopping has ended it.
        best_step: the step of the best look at the selection block.
        best_loss: the loss there, in nats per token.
        looks_since_best: looks since then.
        seconds: time it has taken so far, over all its processes' lives.
        rows: a row per look or reading, with the columns of `HISTORY`.
    """

    step: int = 0
    stopped: bool = False
    best_step: int = 0
    best_loss: float = math.inf
    evals_since_best: int = 0
    seconds: float = 0.0
    rows: list[list[float]] = field(default_factory=list)

    def look(self, loss: float, patience: int) -> bool:
        """Take in a look at the selection block; tell whether it is the best so far, and stop if none were lately.

        Raises:
            ModelError: the loss is not finite.
        """
        if check_finite(loss, self.step) < self.best_loss:
            self.best_loss, self.best_step, self.evals_since_best = loss, self.step, 0
            return True
        self.evals_since_best += 1
        self.stopped = self.evals_since_best >= patience
        return False

    def record(
        self,
        *,
        epoch: int,
        train_loss: float,
        selection_loss: float,
        learning_rate: float,
        windows_per_second: float,
    ) -> dict[str, float]:
        """Add a row to the history at this step; the row by name, the step aside, as a listener is told it."""
        self.rows.append([self.step, epoch, train_loss, selection_loss, learning_rate, windows_per_second])
        return dict(zip(HISTORY[1:], self.rows[-1][1:], strict=True))

    def outcome(
        self, best: Tensors, last: Tensors, *, steps: int, windows_per_step: int, resumed_from: int
    ) -> TrainOutput:
        """What the training found, once it has ended.

        Args:
            best: the tensors at the best look; they are copied to the host, as are the last.
            last: those at the last step.
            steps: the steps that were planned.
            windows_per_step: windows per optimiser step.
            resumed_from: the step from which this process went on.
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
                "stopped_early": self.stopped and self.step < steps,
                "seconds": round(self.seconds, 3),
                "windows_per_second": round(self.step * windows_per_step / max(self.seconds, 1e-9), 1),
                "resumed_from_step": resumed_from,
            },
        )


def check_finite(loss: float, step: int) -> float:
    """The loss.

    Raises:
        ModelError: it is no finite number.
    """
    if not math.isfinite(loss):
        raise ModelError(f"The loss is {loss} at step {step}; lower --learning-rate, or use --precision fp32.")
    return loss

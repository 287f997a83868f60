"""The course of a training: its order, rates and looks, where it is, and what came of it.

A lone training follows it, and so does each of the adapters that train together, so both end with the same numbers.
Everything here follows from the settings and the counts alone; a position is plain data and saved with the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd
import torch

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.training.host_copy import state_to_host

HISTORY = ("step", "epoch", "train_loss", "selection_loss", "learning_rate", "windows_per_second")
LOG_STEPS = 10
"""Steps between two readings of the training loss: reading it waits for the device."""

Tensors = dict[str, torch.Tensor]


class Listener(Protocol):
    """Told the numbers of a step; MLflow's tracker is one."""

    def on_log(self, step: int, values: Mapping[str, float]) -> None: ...


@dataclass(frozen=True)
class Outcome:
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
class Position:
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
    looks_since_best: int = 0
    seconds: float = 0.0
    rows: list[list[float]] = field(default_factory=list)

    def look(self, loss: float, patience: int) -> bool:
        """Take in a look at the selection block; tell whether it is the best so far, and stop if none were lately.

        Raises:
            ModelError: the loss is not finite.
        """
        if finite(loss, self.step) < self.best_loss:
            self.best_loss, self.best_step, self.looks_since_best = loss, self.step, 0
            return True
        self.looks_since_best += 1
        self.stopped = self.looks_since_best >= patience
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

    def outcome(self, best: Tensors, last: Tensors, *, steps: int, windows_per_step: int, resumed_from: int) -> Outcome:
        """What the training found, once it has ended.

        Args:
            best: the tensors at the best look; they are copied to the host, as are the last.
            last: those at the last step.
            steps: the steps that were planned.
            windows_per_step: windows per optimiser step.
            resumed_from: the step from which this process went on.
        """
        history = pd.DataFrame(self.rows, columns=list(HISTORY))
        return Outcome(
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


def epoch_order(seed: int, epoch: int, windows: int) -> torch.Tensor:
    """The order of the windows in an epoch, (windows,) int64: a permutation that seed and epoch (from 0) give."""
    return torch.randperm(windows, generator=torch.Generator().manual_seed((seed << 20) + epoch))


def batches_of(step: torch.Tensor, batch_size: int, place: int = 0, processes: int = 1) -> list[torch.Tensor]:
    """One process's batches of an optimiser step, at most `batch_size` windows each.

    Each process has as many batches as the others, or they would wait for each other for ever; where the windows do not
    suffice, one is in the batches of two.

    Args:
        step: the windows of the step, by number.
        batch_size: windows per batch and process.
        place: the process, from 0.
        processes: how many train together.
    """
    return [some[place % len(some) :: processes] for some in step.split(batch_size * processes)]


def look_points(recipe: Recipe, steps_per_epoch: int) -> frozenset[int]:
    """The steps of an epoch, from 1, after which the selection block is looked at; its last is one."""
    looks = recipe.evaluations_per_epoch
    return frozenset(math.ceil(steps_per_epoch * look / looks) for look in range(1, looks + 1))


def warmup_then_cosine(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """The factor on the learning rate: up in a line over the warm-up, then down half a cosine to 0 at the last step."""
    warmup = max(1, round(recipe.warmup_fraction * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


def average_decay(recipe: Recipe, step: int) -> float:
    """The decay of the averaged weights at a step; a young average would lean on the untouched weights, so it grows."""
    return min(recipe.average_decay, (1 + step) / (10 + step))


def finite(loss: float, step: int) -> float:
    """The loss.

    Raises:
        ModelError: it is no finite number.
    """
    if not math.isfinite(loss):
        raise ModelError(f"The loss is {loss} at step {step}; lower --learning-rate, or use --precision fp32.")
    return loss

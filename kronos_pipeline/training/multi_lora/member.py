"""Member of a joint training: its windows, its schedule and its state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import ModelError
from kronos_pipeline.training.callback import Callback
from kronos_pipeline.training.loop import LOG_STEPS, batches_of, epoch_order, eval_steps, warmup_then_cosine
from kronos_pipeline.training.trainer_state import TrainerState, check_finite


@dataclass(frozen=True)
class Member:
    """Adapter of a joint training.

    Attributes:
        key: key of its training, which identifies it in a saved state.
        train: numbers of its windows in the training data of the group.
        selection: numbers of its windows in the selection data of the group.
        listener: receives the events of its training.
    """

    key: str
    train: range
    selection: range
    listener: Callback | None = None


class MemberTraining:
    """Schedule and state of a member.

    Attributes:
        windows_per_step: windows of an optimiser step; the last step of an epoch may have fewer.
        steps_per_epoch: optimiser steps of an epoch.
        steps: optimiser steps of all epochs.
        state: its position and history.
        error: the message of the error that ended it, or None.
        unlogged_batches: batches since the training loss was logged.
        last_log: step and time of the last log.
        resumed_from: its step in the saved state.
    """

    def __init__(self, member: Member, recipe: Recipe) -> None:
        self.member, self._recipe = member, recipe
        self.windows_per_step = recipe.batch_size * recipe.grad_accum_steps
        self.steps_per_epoch = math.ceil(len(member.train) / self.windows_per_step)
        self.steps = recipe.epochs * self.steps_per_epoch
        self.state = TrainerState()
        self.error: str | None = None
        self.unlogged_batches = 0
        self.last_log = (0, 0.0)
        self.resumed_from = 0
        self._eval_steps = eval_steps(recipe, self.steps_per_epoch)
        self._factor = warmup_then_cosine(recipe, self.steps)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def ended(self) -> bool:
        """True after the last step, a stop or an error."""
        return self.error is not None or self.state.stopped or self.state.step >= self.steps

    @property
    def should_evaluate(self) -> bool:
        """Whether an evaluation on the selection block follows the last step."""
        return (self.state.step - 1) % self.steps_per_epoch + 1 in self._eval_steps

    @property
    def should_log(self) -> bool:
        """Whether the training loss is read after the last step."""
        return self.should_evaluate or self.state.step % LOG_STEPS == 0

    def start(self, untouched_loss: float) -> None:
        """Log the selection loss before the first step and call the listener; set `error` if it is not finite."""
        try:
            values = self.state.start(untouched_loss)
        except ModelError as error:
            self.error = str(error)
            return
        if self.member.listener is not None:
            self.member.listener.on_log(0, values)

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        return self._recipe.peak_learning_rate * self._factor(self.state.step)

    def batches(self) -> list[Tensor]:
        """Return the batches of the next step, whose gradients add up: windows by number."""
        epoch, done = divmod(self.state.step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = epoch_order(self._recipe.seed, epoch, len(self.member.train)) + self.member.train.start
            self._order = epoch, order
        first = done * self.windows_per_step
        return batches_of(self._order[1][first : first + self.windows_per_step], self._recipe.batch_size)

    def end_step(self, batches: int, seconds: float) -> None:
        """Count an optimiser step and call the listener.

        Args:
            batches: batches of the step.
            seconds: training time so far.
        """
        self.state.step += 1
        self.state.seconds = seconds
        self.unlogged_batches += batches
        if self.member.listener is not None:
            self.member.listener.on_step_end(self.state.step)

    def log(self, total: float, selection_loss: float, learning_rate: float, now: float) -> dict[str, float] | None:
        """Log losses after a step and call the listener; set `error` if a loss is not finite.

        Args:
            total: sum of the losses of the batches since the last log.
            selection_loss: loss on the selection block, or NaN without an evaluation.
            learning_rate: learning rate of the step.
            now: the time.

        Returns:
            The logged values by name, or None after an error.
        """
        state, (last_step, last_time) = self.state, self.last_log
        try:
            train_loss = check_finite(total / self.unlogged_batches, state.step)
            if self.should_evaluate:
                state.evaluate(selection_loss, self._recipe.patience)
        except ModelError as error:
            self.error = str(error)
            return None
        values = state.log(
            epoch=(state.step - 1) // self.steps_per_epoch + 1,
            train_loss=train_loss,
            selection_loss=selection_loss,
            learning_rate=learning_rate,
            windows_per_second=(state.step - last_step) * self.windows_per_step / max(now - last_time, 1e-9),
        )
        self.unlogged_batches, self.last_log = 0, (state.step, now)
        if self.member.listener is not None:
            self.member.listener.on_log(state.step, values)
        return values

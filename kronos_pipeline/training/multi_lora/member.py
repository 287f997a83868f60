"""One of the adapters that train together: its windows, its plan, and where it is in it."""

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
    """One of the adapters that train together.

    Attributes:
        key: of its training, by which it is known again in a saved state.
        train: the numbers of its windows in the training data that all share.
        selection: the same in the data of the selection blocks.
        listener: told its losses as they are read.
    """

    key: str
    train: range
    selection: range
    listener: Callback | None = None


class MemberTraining:
    """A member's plan, and where it is in it.

    Attributes:
        windows_per_step: windows of an optimiser step, the last of an epoch aside.
        steps_per_epoch: optimiser steps of an epoch.
        steps: those of all epochs.
        position: where it is.
        error: why it failed, or None.
        batches_read: batches since the training loss was read.
        read: the step and the time at which it was.
        resumed_from: the step that a saved state had it at.
    """

    def __init__(self, member: Member, recipe: Recipe) -> None:
        self.member, self._recipe = member, recipe
        self.windows_per_step = recipe.batch_size * recipe.grad_accum_steps
        self.steps_per_epoch = math.ceil(len(member.train) / self.windows_per_step)
        self.steps = recipe.epochs * self.steps_per_epoch
        self.position = TrainerState()
        self.error: str | None = None
        self.batches_read = 0
        self.read = (0, 0.0)
        self.resumed_from = 0
        self._look_at = eval_steps(recipe, self.steps_per_epoch)
        self._factor = warmup_then_cosine(recipe, self.steps)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def ended(self) -> bool:
        return self.error is not None or self.position.stopped or self.position.step >= self.steps

    @property
    def looks(self) -> bool:
        """Whether the step that was taken last is followed by a look at the selection block."""
        return (self.position.step - 1) % self.steps_per_epoch + 1 in self._look_at

    @property
    def is_due(self) -> bool:
        """Whether the training loss is read after that step."""
        return self.looks or self.position.step % LOG_STEPS == 0

    def learning_rate(self) -> float:
        """That of the step to come."""
        return self._recipe.learning_rate * self._factor(self.position.step)

    def batches(self) -> list[Tensor]:
        """The windows of the step to come, by number: a batch, or those whose gradients add up."""
        epoch, done = divmod(self.position.step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = epoch_order(self._recipe.seed, epoch, len(self.member.train)) + self.member.train.start
            self._order = epoch, order
        first = done * self.windows_per_step
        return batches_of(self._order[1][first : first + self.windows_per_step], self._recipe.batch_size)

    def take_in(self, total: float, look: float, learning_rate: float, now: float) -> dict[str, float] | None:
        """Note losses after a step, and tell the listener; an error, where one of them is not finite.

        Args:
            total: the losses of the batches since the last reading, in sum.
            look: the loss on the selection block, or NaN where it was not looked at.
            learning_rate: that of the step.
            now: the time.

        Returns:
            What was noted, by name, or None.
        """
        position, (read_step, read_at) = self.position, self.read
        try:
            train_loss = check_finite(total / self.batches_read, position.step)
            if self.looks:
                position.look(look, self._recipe.patience)
        except ModelError as error:
            self.error = str(error)
            return None
        values = position.record(
            epoch=(position.step - 1) // self.steps_per_epoch + 1,
            train_loss=train_loss,
            selection_loss=look,
            learning_rate=learning_rate,
            windows_per_second=(position.step - read_step) * self.windows_per_step / max(now - read_at, 1e-9),
        )
        self.batches_read, self.read = 0, (position.step, now)
        if self.member.listener is not None:
            self.member.listener.on_log(position.step, values)
        return values
